// What crosses the wire: the documented HTTP API as this page uses it.

export type Edition = "mini" | "cpu" | "pro";
export type ServiceState = "ready" | "loading" | "degraded" | "unhealthy";

/** GET /api/status and every event of GET /api/status/stream. */
export interface Status {
  state: ServiceState;
  reason: string;
  edition: Edition;
  title: string;
  model: string;
  precision: string;
  device: string;
  version: string;
  queue: { running: number; waiting: number; capacity: number };
  loading: { stage: string; fraction: number } | null;
  memory?: { used_bytes: number; limit_bytes: number };
  speed?: { tokens_per_second: number };
  limits: { image_bytes: number; max_images: number; max_tokens: number };
  auth: "open" | "key";
  /** Whether anybody on the network can use it without a key. */
  is_exposed: boolean;
  demo: boolean;
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  prompt_tokens_details?: { image_tokens?: number; cached_tokens?: number } | null;
  total_time_ms?: number;
}

/** What the model saw of one picture. */
export interface VisionImage {
  format: string;
  original_width: number;
  original_height: number;
  orientation: number;
  width: number;
  height: number;
  scale: number;
  tokens: number;
  cache_hit: boolean;
  warnings: string[];
}

export interface Vision {
  images: VisionImage[];
  timing: Partial<
    Record<
      "queue_ms" | "decode_ms" | "encode_ms" | "prefill_ms" | "first_token_ms" | "total_ms",
      number
    >
  >;
}

/** The answer of POST /v1/images/plan: what would happen to a picture. */
export interface Plan {
  tokens: number;
  estimated_seconds: number | null;
  warnings: string[];
}

/** A box in pixels of the upright original. */
export interface Box {
  label: string;
  bbox: [number, number, number, number];
  image: number;
}

/** What an event adds: to the answer, or to the reasoning before it. */
export interface Delta {
  content?: string | null;
  reasoning_content?: string | null;
}

/** One event of a streamed completion. */
export interface Chunk {
  choices?: { delta?: Delta; finish_reason?: string | null }[];
  usage?: Usage | null;
  vision?: Vision | null;
  boxes?: Box[] | null;
  session_id?: string | null;
  error?: { message: string; code?: string | null };
}

export type Detail = "auto" | "low" | "high";

export type Part =
  | { type: "text"; text: string }
  | { type: "image_url"; image_url: { url: string; detail: Detail } };

export interface Message {
  role: "user" | "assistant";
  content: string | Part[];
}

/** A job of POST /v1/batches. */
export interface BatchJob {
  id: string;
  status: string;
  input_file_id: string;
  output_file_id?: string | null;
  error_file_id?: string | null;
  request_counts?: { total: number; completed: number; failed: number } | null;
}
