"""What the published Realtime API has, and whether this server does it: the rows of docs/realtime-conformance.md.

``yes``; ``refused``: with an error that names the field and says what works instead; ``not sent``: a server event
that has no occasion here. A test holds the names against the official client's models, another asks that each row that
says ``yes`` or ``refused`` is covered by a test that sends or gets it. No imports: the page is made without the tests'
tools.
"""

from __future__ import annotations

from typing import Final

Rows = dict[str, tuple[str, str]]

CLIENT_EVENTS: Final[Rows] = {
    "session.update": ("yes", ""),
    "input_audio_buffer.append": ("yes", "by WebSocket; over WebRTC sound has its track, and this is refused"),
    "input_audio_buffer.commit": ("yes", "waits until all that was sent before it is heard; answered if turns are"),
    "input_audio_buffer.clear": ("yes", ""),
    "conversation.item.create": ("yes", "messages, function calls and their outputs; audio parts are refused"),
    "conversation.item.retrieve": ("yes", "without the sound"),
    "conversation.item.delete": ("yes", ""),
    "conversation.item.truncate": ("yes", ""),
    "response.create": ("yes", ""),
    "response.cancel": ("yes", ""),
    "output_audio_buffer.clear": ("yes", "also by WebSocket; nothing happens if nothing can be heard"),
}

SERVER_EVENTS: Final[Rows] = {
    "session.created": ("yes", ""),
    "session.updated": ("yes", ""),
    "error": ("yes", ""),
    "input_audio_buffer.speech_started": ("yes", "not with `turn_detection: null`"),
    "input_audio_buffer.speech_stopped": ("yes", "not with `turn_detection: null`"),
    "input_audio_buffer.committed": ("yes", ""),
    "input_audio_buffer.cleared": ("yes", ""),
    "input_audio_buffer.timeout_triggered": ("yes", ""),
    "input_audio_buffer.dtmf_event_received": ("not sent", "keys come as `duplex.key`, with media time"),
    "conversation.created": ("not sent", "there is one conversation a session, and it begins with it"),
    "conversation.item.created": ("not sent", "the name before `conversation.item.added`"),
    "conversation.item.added": ("yes", ""),
    "conversation.item.done": ("yes", ""),
    "conversation.item.retrieved": ("yes", ""),
    "conversation.item.deleted": ("yes", ""),
    "conversation.item.truncated": ("yes", "also when the user interrupts, with what was heard in `duplex`"),
    "conversation.item.input_audio_transcription.delta": (
        "yes",
        "one, with all the words; what is still changing comes as `duplex.transcript.partial`",
    ),
    "conversation.item.input_audio_transcription.segment": ("not sent", "there is one speaker a line"),
    "conversation.item.input_audio_transcription.completed": ("yes", ""),
    "conversation.item.input_audio_transcription.failed": ("yes", ""),
    "response.created": ("yes", ""),
    "response.done": ("yes", "`usage` is null for agents that do not count tokens"),
    "response.output_item.added": ("yes", ""),
    "response.output_item.done": ("yes", ""),
    "response.content_part.added": ("yes", ""),
    "response.content_part.done": ("yes", ""),
    "response.output_audio.delta": ("yes", "by WebSocket"),
    "response.output_audio.done": ("yes", ""),
    "response.output_audio_transcript.delta": ("yes", ""),
    "response.output_audio_transcript.done": ("yes", ""),
    "response.output_text.delta": ("yes", ""),
    "response.output_text.done": ("yes", ""),
    "response.function_call_arguments.delta": ("yes", ""),
    "response.function_call_arguments.done": ("yes", ""),
    "output_audio_buffer.started": ("yes", "over WebRTC"),
    "output_audio_buffer.stopped": ("yes", "over WebRTC"),
    "output_audio_buffer.cleared": ("yes", "over WebRTC"),
    "rate_limits.updated": ("not sent", "nothing is billed; what a server limits, it refuses with an error"),
    "response.mcp_call.completed": ("not sent", "MCP tools are refused"),
    "response.mcp_call.failed": ("not sent", "MCP tools are refused"),
    "response.mcp_call.in_progress": ("not sent", "MCP tools are refused"),
    "response.mcp_call_arguments.delta": ("not sent", "MCP tools are refused"),
    "response.mcp_call_arguments.done": ("not sent", "MCP tools are refused"),
    "mcp_list_tools.completed": ("not sent", "MCP tools are refused"),
    "mcp_list_tools.failed": ("not sent", "MCP tools are refused"),
    "mcp_list_tools.in_progress": ("not sent", "MCP tools are refused"),
}

SESSION_FIELDS: Final[Rows] = {
    "type": ("yes", "`realtime`; `transcription` is refused"),
    "model": ("yes", "any name; this server has one model and says which"),
    "instructions": ("yes", "null: the agent's own"),
    "output_modalities": ("yes", '`["audio"]` or `["text"]`'),
    "audio.input.format": ("yes", "PCM, µ-law and A-law by WebSocket, also in mid-call; Opus over WebRTC"),
    "audio.input.noise_reduction": ("refused", "unless null"),
    "audio.input.transcription": ("yes", "on or off; any `model`, the listener's `language`; no `prompt`"),
    "audio.input.turn_detection": ("yes", "null: the client decides"),
    "audio.input.turn_detection.type": ("yes", "`semantic_vad` (the default) or `server_vad`"),
    "audio.input.turn_detection.eagerness": ("yes", "the presets patient, balanced and eager"),
    "audio.input.turn_detection.threshold": ("yes", "0.01 to 0.99"),
    "audio.input.turn_detection.prefix_padding_ms": ("yes", "up to 300"),
    "audio.input.turn_detection.silence_duration_ms": ("yes", "a turn ends after that, whatever was said"),
    "audio.input.turn_detection.create_response": ("yes", ""),
    "audio.input.turn_detection.interrupt_response": ("yes", ""),
    "audio.input.turn_detection.idle_timeout_ms": ("yes", ""),
    "audio.output.format": ("yes", "as for input; changes with the next response"),
    "audio.output.voice": ("yes", "the agent's voices; OpenAI's names mean its first"),
    "audio.output.speed": ("refused", "unless 1.0"),
    "tools": ("yes", "functions, if the agent calls any; MCP servers are refused"),
    "tool_choice": ("yes", ""),
    "parallel_tool_calls": ("refused", "unless true or null"),
    "max_output_tokens": ("yes", ""),
    "truncation": ("refused", 'unless "auto": the oldest turns leave first'),
    "include": ("refused", "unless empty"),
    "prompt": ("refused", ""),
    "reasoning": ("refused", ""),
    "tracing": ("refused", 'unless "auto" or null: traces come as `duplex.trace` either way'),
}

RESPONSE_FIELDS: Final[Rows] = {
    "instructions": ("yes", ""),
    "output_modalities": ("yes", ""),
    "max_output_tokens": ("yes", '"inf": as long as the session lets it'),
    "metadata": ("yes", ""),
    "conversation": ("yes", "`none`: not remembered; text alone may be made beside another response, up to four"),
    "input": ("yes", "items, and references to items"),
    "tools": ("yes", ""),
    "tool_choice": ("yes", ""),
    "audio": ("refused", "unless empty; it is the session's"),
    "parallel_tool_calls": ("refused", "unless true or null"),
    "prompt": ("refused", ""),
    "reasoning": ("refused", ""),
}

EXTENSIONS: Final[dict[str, str]] = {
    "duplex.playback.ack": "client: `{response_id, played_ms}` of a response have left the speaker; evidence for what "
    "was heard",
    "duplex.transcript.partial": "`{item_id, text}`: the open turn's words so far, replacing the last",
    "duplex.turn.reopened": "`{item_id}`: the user went on before the reply was heard; the item grows on",
    "duplex.floor": "`{floor, user}`: who has the floor, and what the user is doing (docs/turn-taking.md)",
    "duplex.reply.held": "`{response_id}`: the response is paused under the user's speech, undecided",
    "duplex.reply.resumed": "`{response_id}`: it goes on from the same sample",
    "duplex.words": "`{response_id, item_id, words}`: when each word of a response is heard, ms of its sound",
    "duplex.playout": "`{response_id, sent_ms, heard_ms, evidence, error_ms}`: how far it got",
    "duplex.aside": "`{purpose, transcript}`: a word that does not take the floor is being spoken",
    "duplex.aside.delta": "`{delta}`: its sound, by WebSocket",
    "duplex.trace": "the latency waterfall of a turn, ms after the user's last voiced sample",
    "duplex.key": "`{key}`: a key of the caller's telephone",
    "duplex.line.lost": "`{silent_s, response_id, heard_ms}`: there is no sign of the client; the session stands still",
    "duplex.line.back": "`{lost_s, response_id, resumed_ms}`: there is again; the response goes on from there",
    "duplex.session.resume": "client: `{session_id, resume_token, last_event_id, playback}`, the first event of a "
    "connection that goes on with a session (docs/resume.md)",
    "duplex.session.resumed": "`{missed, complete}`: it does; what was missed has been sent again",
    "duplex.session.draining": "`{deadline_s}`: the server is stopping; the session ends within that time",
    "duplex.session.closed": "`{reason}`: the last event of a session",
}
