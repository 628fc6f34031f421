"""The documents of STS, read back with the parser that the SDKs of Python use."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree as ET

import botocore.session
import pytest
from botocore.parsers import QueryParser
from hypothesis import given
from hypothesis import strategies as st

from delta_proxy.s3.sts_xml import (
    NAMESPACE,
    IDPCommunicationError,
    IssuedSession,
    StsError,
    StsUnavailable,
    assume_role_with_web_identity,
    error_document,
    get_caller_identity,
)

MODEL = botocore.session.get_session().get_service_model("sts")


def parsed(operation: str, body: bytes, status: int = 200) -> Any:
    """What botocore makes of a document."""
    shape = MODEL.operation_model(operation).output_shape
    return QueryParser().parse({"body": body, "headers": {}, "status_code": status}, shape)


def session(subject: str = "4711") -> IssuedSession:
    """A session, as it is told."""
    return IssuedSession(
        access_key="ASIAAAAAAAAAAAAAAAAA",
        secret_key="secret",
        session_token="token",
        expires=datetime(2026, 11, 22, 12, 0, tzinfo=UTC),
        role_arn="arn:aws:iam::123456789012:role/reader",
        assumed_role_arn="arn:aws:sts::123456789012:assumed-role/reader/alice",
        assumed_role_id="AROA:alice",
        subject=subject,
        audience="aud",
        provider="https://issuer.example",
    )


def test_the_sdk_reads_the_credentials_of_a_session() -> None:
    answer = parsed("AssumeRoleWithWebIdentity", assume_role_with_web_identity(session(), "r1"))
    assert answer["Credentials"] == {
        "AccessKeyId": "ASIAAAAAAAAAAAAAAAAA",
        "SecretAccessKey": "secret",
        "SessionToken": "token",
        "Expiration": datetime(2026, 11, 22, 12, 0, tzinfo=UTC),
    }
    assert answer["AssumedRoleUser"]["Arn"] == "arn:aws:sts::123456789012:assumed-role/reader/alice"
    assert answer["SubjectFromWebIdentityToken"] == "4711"
    assert answer["ResponseMetadata"]["RequestId"] == "r1"


def test_the_sdk_reads_who_it_is() -> None:
    body = get_caller_identity(arn="arn:aws:iam::0:user/alice", user_id="alice", account="0", request_id="r")
    answer = parsed("GetCallerIdentity", body)
    assert (answer["Arn"], answer["UserId"], answer["Account"]) == ("arn:aws:iam::0:user/alice", "alice", "0")


def test_the_sdk_reads_the_code_of_an_error() -> None:
    answer = parsed("GetCallerIdentity", error_document(IDPCommunicationError(), "r2"), 400)
    assert answer["Error"]["Code"] == "IDPCommunicationError"
    assert answer["Error"]["Type"] == "Sender"
    assert answer["ResponseMetadata"]["RequestId"] == "r2"


def test_a_failure_of_the_proxy_is_not_the_senders() -> None:
    answer = parsed("GetCallerIdentity", error_document(StsUnavailable(), "r"), 503)
    assert answer["Error"]["Type"] == "Receiver"


def test_a_session_does_not_show_its_secret() -> None:
    assert "secret'" not in repr(session())
    assert "token'" not in repr(session())


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_is_told_unchanged_or_refused(subject: str) -> None:
    try:
        body = assume_role_with_web_identity(session(subject), "r")
    except ValueError:
        return
    found = ET.fromstring(body).find(f".//{{{NAMESPACE}}}SubjectFromWebIdentityToken")
    assert found is not None
    assert (found.text or "").replace("\n", "") == subject.replace("\n", "")


@pytest.mark.parametrize("text", ["\x00", "\x1b[31m", "\ud800", "\ufffe"])
def test_text_that_xml_cannot_hold_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="XML"):
        assume_role_with_web_identity(session(text), "r")


@given(st.text())
def test_an_error_with_any_message_is_valid_xml(message: str) -> None:
    ET.fromstring(error_document(StsError(message), "r"))
