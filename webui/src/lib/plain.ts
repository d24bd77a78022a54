// Answers on their way out: clipboard, plain text, CSV, XLSX and downloads.

/** Puts text on the clipboard, also on plain http where the clipboard API is missing. */
export async function copyText(text: string): Promise<boolean> {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // Refused (no focus, no permission): the old way below still works.
    }
  }
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "offscreen";
  area.readOnly = true;
  const focused = document.activeElement;
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (focused instanceof HTMLElement) focused.focus();
  return done;
}

/** Saves a file on the visitor's machine. */
export function download(name: string, content: BlobPart | BlobPart[], type: string): void {
  const url = URL.createObjectURL(new Blob(Array.isArray(content) ? content : [content], { type }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

const BLOCKS = new Set(["P", "LI", "TR", "PRE", "H1", "H2", "H3", "H4", "H5", "H6", "BLOCKQUOTE"]);

/** The text of rendered Markdown: lines for blocks, tabs between cells. */
export function textOf(html: string): string {
  const template = document.createElement("template");
  template.innerHTML = html;
  const out: string[] = [];
  const walk = (node: Node) => {
    if (node instanceof Text) {
      out.push(node.data);
      return;
    }
    const name = node.nodeName;
    if (name === "BR") out.push("\n");
    if (name === "LI") out.push("- ");
    for (const child of node.childNodes) walk(child);
    if ((name === "TD" || name === "TH") && (node as Element).nextElementSibling) out.push("\t");
    if (BLOCKS.has(name)) out.push("\n");
  };
  walk(template.content);
  return out
    .join("")
    .replace(/[ \t]*\n\s*\n+/g, "\n")
    .trim();
}

/** Rows as CSV. A text cell that a spreadsheet would run as a formula is quoted with '. */
export function toCsv(rows: string[][]): string {
  const cell = (value: string) => {
    const formula = /^[=@+\-\t\r]/.test(value) && Number.isNaN(Number(value));
    const safe = formula ? `'${value}` : value;
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\r\n");
}

/** Rows as an Excel workbook with one sheet. */
export function toXlsx(rows: string[][]): Uint8Array<ArrayBuffer> {
  const head = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>';
  const types = "http://schemas.openxmlformats.org/package/2006/content-types";
  const main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main";
  const office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships";
  const links = "http://schemas.openxmlformats.org/package/2006/relationships";
  const form = "application/vnd.openxmlformats-officedocument.spreadsheetml";
  const cells = (row: string[]) =>
    row.map((v) => `<c t="inlineStr"><is><t xml:space="preserve">${xml(v)}</t></is></c>`).join("");
  const sheet = rows.map((row) => `<row>${cells(row)}</row>`).join("");
  return zip({
    "[Content_Types].xml": `${head}<Types xmlns="${types}"><Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Override PartName="/xl/workbook.xml" ContentType="${form}.sheet.main+xml"/><Override PartName="/xl/worksheets/sheet1.xml" ContentType="${form}.worksheet+xml"/></Types>`,
    "_rels/.rels": `${head}<Relationships xmlns="${links}"><Relationship Id="r1" Type="${office}/officeDocument" Target="xl/workbook.xml"/></Relationships>`,
    "xl/workbook.xml": `${head}<workbook xmlns="${main}" xmlns:r="${office}"><sheets><sheet name="Results" sheetId="1" r:id="r1"/></sheets></workbook>`,
    "xl/_rels/workbook.xml.rels": `${head}<Relationships xmlns="${links}"><Relationship Id="r1" Type="${office}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>`,
    "xl/worksheets/sheet1.xml": `${head}<worksheet xmlns="${main}"><sheetData>${sheet}</sheetData></worksheet>`,
  });
}

function xml(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: XML 1.0 cannot carry these characters
  const clean = text.replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f]/g, "");
  return clean.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

/** A ZIP archive of stored (uncompressed) text files. */
function zip(files: Record<string, string>): Uint8Array<ArrayBuffer> {
  const encoder = new TextEncoder();
  const parts: Uint8Array[] = [];
  const directory: Uint8Array[] = [];
  let offset = 0;
  for (const [path, text] of Object.entries(files)) {
    const name = encoder.encode(path);
    const data = encoder.encode(text);
    const common = numbers([20, 2], [0, 2], [0, 2], [0, 2], [0x21, 2], [crc32(data), 4]);
    const sizes = numbers([data.length, 4], [data.length, 4], [name.length, 2], [0, 2]);
    const local = [numbers([0x04034b50, 4]), common, sizes, name, data];
    directory.push(
      numbers([0x02014b50, 4], [20, 2]),
      common,
      sizes,
      numbers([0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]),
      name,
    );
    parts.push(...local);
    offset += local.reduce((sum, part) => sum + part.length, 0);
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const count = Object.keys(files).length;
  const end = numbers(
    [0x06054b50, 4],
    [0, 4],
    [count, 2],
    [count, 2],
    [size, 4],
    [offset, 4],
    [0, 2],
  );
  return join([...parts, ...directory, end]);
}

/** Little-endian numbers, each with its width in bytes. */
function numbers(...fields: [number, number][]): Uint8Array {
  return Uint8Array.from(
    fields.flatMap(([value, width]) =>
      Array.from({ length: width }, (_, i) => (value >>> (8 * i)) & 0xff),
    ),
  );
}

function join(parts: Uint8Array[]): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

function crc32(data: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of data) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit += 1) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}
