"""Twilio's signature, held against the examples that Twilio publishes with its libraries."""

from __future__ import annotations

import hmac

import pytest

from duplex.transport.locks.twilio_signature import twilio_signature, twilio_signature_valid

# Account token, address, parameters and signatures of twilio-python's tests/unit/test_request_validator.py.
TOKEN = "12345"
URL = "https://mycompany.com/myapp.php?foo=1&bar=2"
PARAMS = {
    "CallSid": "CA1234567890ABCDE",
    "Digits": "1234",
    "From": "+14158675309",
    "To": "+18005551212",
    "Caller": "+14158675309",
}


@pytest.mark.parametrize(
    ("url", "signature"),
    [
        (URL, "RSOYDt4T1cUTdK1PDd93/VVr8B8="),
        (URL.replace(".com", ".com:1234"), "RSOYDt4T1cUTdK1PDd93/VVr8B8="),
        (URL.replace("https", "http").replace(".com", ".com:1234"), "Zmvh+3yNM1Phv2jhDCwEM3q5ebU="),
        (URL, "kvajT1Ptam85bY51eRf/AJRuM3w="),  # Twilio signed the address with :443
        (URL.replace("https", "http"), "0ZXoZLH/DfblKGATFgpif+LLRf4="),  # and with :80
    ],
)
def test_published_signatures_are_valid(url: str, signature: str) -> None:
    assert twilio_signature_valid(url, PARAMS, TOKEN, signature)
    assert twilio_signature_valid(url, PARAMS, TOKEN, f" {signature}\n")


def test_a_parameter_that_comes_twice() -> None:
    params = {"Sid": "CA123", "SidAccount": "AC123", "Digits": ["5678", "1234", "5678"]}
    assert twilio_signature_valid(URL, params, TOKEN, "IK+Dwps556ElfBT0I3Rgjkr1wJU=")


def test_a_body_is_signed_by_its_hash_in_the_address() -> None:
    hashed = "0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620"
    assert twilio_signature_valid(f"{URL}&bodySHA256={hashed}", {}, TOKEN, "a9nBmqA0ju/hNViExpshrM61xv4=")


@pytest.mark.parametrize(
    ("url", "params", "token", "signature"),
    [
        (URL + "3", PARAMS, TOKEN, "RSOYDt4T1cUTdK1PDd93/VVr8B8="),
        (URL, PARAMS | {"Digits": "1235"}, TOKEN, "RSOYDt4T1cUTdK1PDd93/VVr8B8="),
        (URL, PARAMS, "12346", "RSOYDt4T1cUTdK1PDd93/VVr8B8="),
        (URL, PARAMS, TOKEN, "rSOYDt4T1cUTdK1PDd93/VVr8B8="),
        (URL, PARAMS, TOKEN, ""),
        (URL, PARAMS, TOKEN, "\ud800é"),
        ("https://[broken", {}, TOKEN, "x"),
        ("https://host:port/", {}, TOKEN, "x"),
    ],
)
def test_anything_else_is_not(url: str, params: dict[str, str], token: str, signature: str) -> None:
    assert not twilio_signature_valid(url, params, token, signature)


def test_no_token_is_never_right() -> None:
    assert not twilio_signature_valid(URL, PARAMS, "", twilio_signature(URL, PARAMS, ""))


def test_a_media_stream_is_signed_by_its_address_alone() -> None:
    url = "wss://voice.example/twilio/media"
    assert twilio_signature_valid(url, {}, TOKEN, twilio_signature(url, {}, TOKEN))
    assert twilio_signature_valid(url, {}, TOKEN, twilio_signature("wss://voice.example:443/twilio/media", {}, TOKEN))
    assert not twilio_signature_valid(url.replace("wss", "https"), {}, TOKEN, twilio_signature(url, {}, TOKEN))


def test_it_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return True

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert twilio_signature_valid(URL, {}, TOKEN, "anything")
    assert set(compared) == {b"anything"}
