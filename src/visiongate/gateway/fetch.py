"""Pictures behind http(s) URLs: off unless the host is on the operator's list.

The host's addresses are resolved once, each is checked, and the connection goes to the checked
address; a redirect starts the same way again. Nothing is read beyond the limit of bytes or time.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Final
from urllib.parse import urljoin

import httpx

from visiongate.errors import InvalidImage, InvalidParameter, TooLarge

MAX_REDIRECTS: Final = 3
TIMEOUT_SECONDS: Final = 10.0

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Fetcher:
    """Fetches pictures from allowed hosts.

    Args:
        hosts: allowed host names; "*.example.org" allows every name below example.org.
        allows_private: whether these hosts may have private or loopback addresses.
        limit: the most bytes of one picture.
    """

    def __init__(self, *, hosts: tuple[str, ...], allows_private: bool, limit: int) -> None:
        self._hosts = tuple(host.lower().rstrip(".") for host in hosts)
        self._allows_private = allows_private
        self._limit = limit
        self._client: httpx.AsyncClient | None = None

    async def close(self) -> None:
        """Closes idle connections."""
        if self._client is not None:
            await self._client.aclose()

    async def fetch(self, url: str, *, param: str) -> bytes:
        """The bytes behind a URL; raises InvalidParameter for what is not allowed."""
        if not self._hosts:
            raise InvalidParameter(
                f"{param} is an http(s) URL and this server fetches none; send the picture as a "
                "data: URL",
                param=param,
            )
        try:
            return await asyncio.wait_for(self._follow(url, param), TIMEOUT_SECONDS)
        except asyncio.TimeoutError:
            raise InvalidParameter(
                f"{param} took longer than {TIMEOUT_SECONDS:g} s to fetch", param=param
            ) from None

    async def _follow(self, url: str, param: str) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            found = await self._get(url, param)
            if isinstance(found, bytes):
                return found
            url = urljoin(url, found)
        raise InvalidParameter(f"{param} redirects more than {MAX_REDIRECTS} times", param=param)

    async def _get(self, url: str, param: str) -> bytes | str:
        """The body, or where a redirect points."""
        target = _parse(url, param)
        address = await self._resolve(target, param)
        pinned = target.copy_with(host=str(address))
        client = self._client = self._client or httpx.AsyncClient(
            timeout=TIMEOUT_SECONDS, trust_env=False, follow_redirects=False
        )
        request = client.build_request(
            "GET",
            pinned,
            headers={"Host": target.netloc.decode("ascii"), "Accept": "image/*"},
            extensions={"sni_hostname": target.raw_host.decode("ascii")},
        )
        try:
            response = await client.send(request, stream=True)
        except httpx.HTTPError:
            raise InvalidParameter(f"{param} cannot be fetched", param=param) from None
        try:
            if response.is_redirect:
                return response.headers["location"]
            if response.status_code != 200:
                raise InvalidParameter(
                    f"{param} answered with status {response.status_code}", param=param
                )
            return await self._read(response, param)
        finally:
            await response.aclose()

    async def _read(self, response: httpx.Response, param: str) -> bytes:
        data = bytearray()
        try:
            async for chunk in response.aiter_bytes():
                data += chunk
                if len(data) > self._limit:
                    raise TooLarge(f"{param} points to a picture over {self._limit} bytes")
        except httpx.HTTPError:
            raise InvalidParameter(f"{param} broke off while it was read", param=param) from None
        if not data:
            raise InvalidImage(f"{param} points to an empty picture")
        return bytes(data)

    async def _resolve(self, url: httpx.URL, param: str) -> Address:
        """The address to connect to; every address of the name must be allowed."""
        host = url.raw_host.decode("ascii").lower().rstrip(".").strip("[]")
        if not any(_matches(host, pattern) for pattern in self._hosts):
            raise InvalidParameter(
                f"{param} names a host that is not on this server's list", param=param
            )
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(
                host, url.port or (443 if url.scheme == "https" else 80), type=socket.SOCK_STREAM
            )
        except OSError:
            raise InvalidParameter(
                f"{param} names a host that cannot be found", param=param
            ) from None
        addresses = [ipaddress.ip_address(item[4][0]) for item in found]
        if not addresses or not all(self._is_allowed(address) for address in addresses):
            raise InvalidParameter(f"{param} leads to a private address", param=param)
        return addresses[0]

    def _is_allowed(self, address: Address) -> bool:
        if self._allows_private:
            return not address.is_multicast and not address.is_unspecified
        return is_public(address)


def is_public(address: Address) -> bool:
    """Whether an address is on the public internet, also when IPv4 hides inside IPv6."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address.teredo:
            inner = address.teredo[1]
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast and address not in _METADATA


_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_METADATA: Final = frozenset({ipaddress.ip_address("168.63.129.16")})


def _parse(url: str, param: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        raise InvalidParameter(f"{param} is not a valid URL", param=param) from None
    if parsed.scheme not in {"http", "https"} or not parsed.host or parsed.userinfo:
        raise InvalidParameter(f"{param} must be a plain http(s) URL", param=param)
    return parsed


def _matches(host: str, pattern: str) -> bool:
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    return host == pattern
