"""Chat completions as they go over the wire: what is sent, and the small things read from what comes. No network."""

from __future__ import annotations

import base64
import json
from typing import Any

from duplex.agent import Tool

from .thinker import Message, ThinkRequest, Usage


def chat_body(request: ThinkRequest, model: str, *, limit_field: str, takes_images: bool) -> dict[str, Any]:
    """``limit_field``: how this server calls the token limit.

    Tools that must not be called are left out, since not every server understands ``tool_choice``.
    """
    body: dict[str, Any] = {
        "model": model,
        "messages": [chat_message(m, takes_images=takes_images) for m in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        limit_field: request.max_tokens,
    }
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.seed is not None:
        body["seed"] = request.seed
    if request.stop:
        body["stop"] = list(request.stop)
    if tools := request.callable_tools:
        body["tools"] = [declaration(tool) for tool in tools]
        if request.tool_choice.name is not None:
            body["tool_choice"] = {"type": "function", "function": {"name": request.tool_choice.name}}
        elif request.tool_choice.mode == "required":
            body["tool_choice"] = "required"
    return body


def declaration(tool: Tool) -> dict[str, Any]:
    parameters = dict(tool.parameters) or {"type": "object", "properties": {}}
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": parameters},
    }


def chat_message(message: Message, *, takes_images: bool) -> dict[str, Any]:
    if message.role == "tool":
        return {"role": "tool", "tool_call_id": message.call_id, "content": message.text}
    if message.calls:
        calls = [
            {"id": c.call_id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in message.calls
        ]
        return {"role": message.role, "content": message.text or None, "tool_calls": calls}
    if not (message.images and takes_images):
        return {"role": message.role, "content": message.text}
    parts: list[dict[str, Any]] = [{"type": "text", "text": message.text}] if message.text else []
    for image in message.images:
        url = "data:image/jpeg;base64," + base64.b64encode(image.jpeg).decode("ascii")
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return {"role": message.role, "content": parts}


def reported_usage(reported: Any) -> Usage | None:
    if not isinstance(reported, dict):
        return None
    details = reported.get("prompt_tokens_details") or {}
    return Usage(
        int(reported.get("prompt_tokens") or 0),
        int(details.get("cached_tokens") or 0),
        int(reported.get("completion_tokens") or 0),
    )


def error_message(body: str) -> str:
    """What an error body says, in at most 200 characters."""
    try:
        error = json.loads(body).get("error", body)
        text = error.get("message", body) if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError):
        text = body
    text = " ".join(str(text).split())[:200].rstrip(".")
    return f"{text}." if text else "no reason given."
