"""Ends with 0 when a request would be answered: what the images' HEALTHCHECK runs."""

import http.client
import os
import sys

PORTS = {"pro": 8501}


def main() -> int:
    """Asks /health on this machine; 1 when the answer is not 200."""
    preset = os.environ.get("VISIONGATE_PRESET", "")
    port = int(os.environ.get("VISIONGATE_PORT") or PORTS.get(preset, 8080))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=4)
    try:
        connection.request("GET", "/health")
        return 0 if connection.getresponse().status == 200 else 1
    except (OSError, http.client.HTTPException):
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
