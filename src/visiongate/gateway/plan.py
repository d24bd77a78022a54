"""POST /v1/images/plan: what would happen to a picture, without running the model."""

from __future__ import annotations

import asyncio
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from visiongate.errors import InvalidImage, InvalidParameter
from visiongate.gateway.answer import scale_of
from visiongate.gateway.logs import note_of
from visiongate.gateway.media import decode_base64, read_multipart
from visiongate.gateway.schemas import PlanReply, PlanRequest, parse
from visiongate.gateway.service import Service, service_of
from visiongate.gateway.sessions import Picture

router = APIRouter(tags=["chat"])

QUESTION_TOKENS: Final = 64
ANSWER_TOKENS: Final = 64
"""What the estimate assumes of a question and its answer."""


@router.post(
    "/v1/images/plan",
    response_model=PlanReply,
    summary="What would happen to this picture",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/PlanRequest"}},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["image"],
                        "properties": {"image": {"type": "string", "format": "binary"}},
                    }
                },
            },
        }
    },
)
async def plan_image(request: Request) -> Response:
    """Size, turn, processed size, visual tokens, estimated seconds; the picture is not kept."""
    service = service_of(request)
    intake = service.answers.check_ready()
    picture = await _picture(request, service)
    note_of(request.scope).image_digests.append(picture.sha256)
    layout = await asyncio.to_thread(service.answers.plan, picture, intake)
    num_tokens = layout.num_tokens
    return JSONResponse(
        PlanReply(
            format=layout.format,
            size_bytes=len(picture.data),
            original_width=layout.original_width,
            original_height=layout.original_height,
            orientation=layout.orientation,
            width=layout.width,
            height=layout.height,
            scale=scale_of(layout),
            tokens=num_tokens,
            fits=num_tokens + QUESTION_TOKENS < intake.max_context_tokens,
            estimated_seconds=estimate_seconds(service, num_tokens),
            warnings=list(layout.warnings),
        ).model_dump()
    )


def estimate_seconds(service: Service, num_image_tokens: int) -> float | None:
    """Encoding, prompt and a short answer at the speeds measured so far; None before any."""
    stats = [worker.stats for worker in service.backend.status().workers]
    patches = sum(item.encoded_patches for item in stats)
    prompt_tokens = sum(item.prefilled_tokens for item in stats)
    decoded = sum(item.decoded_tokens for item in stats)
    if not patches or not prompt_tokens or not decoded:
        return None
    encode = sum(item.encode_seconds for item in stats) / patches * num_image_tokens * 4
    per_token = sum(item.prefill_seconds for item in stats) / prompt_tokens
    decode = sum(item.decode_seconds for item in stats) / decoded * ANSWER_TOKENS
    return round(encode + per_token * (num_image_tokens + QUESTION_TOKENS) + decode, 3)


async def _picture(request: Request, service: Service) -> Picture:
    content_type = request.headers.get("content-type", "")
    limit = service.settings.image_bytes
    if content_type.lower().startswith("multipart/form-data"):
        parts = await read_multipart(
            content_type, request.stream(), file_parts=frozenset({"image"}), file_bytes=limit
        )
        found = [part for part in parts if part.name == "image"]
        if len(found) != 1 or len(parts) != 1:
            raise InvalidParameter("send exactly one part, named image", param="image")
        if not found[0].data:
            raise InvalidImage("the image is empty (0 bytes)")
        return Picture(found[0].data, found[0].filename or "")
    body = parse(PlanRequest, await request.body())
    data = decode_base64(body.image, param="image", limit=limit)
    return Picture(data, "", body.detail, body.min_pixels, body.max_pixels)
