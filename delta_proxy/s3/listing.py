"""What a client asks of a listing, and the small pure rules of listings: tokens, delimiters.

Sources: "ListObjects" and "ListObjectsV2" in the Amazon S3 API reference.
"""

from __future__ import annotations

import base64
import binascii
import re

from attrs import frozen

from delta_proxy.s3.errors import InvalidArgument
from delta_proxy.s3.operation import Operation
from delta_proxy.s3.request import S3Request

MAX_KEYS = 1000
# The form of continuation tokens; a change of form gets another letter, so that old tokens are refused.
_TOKEN_VERSION = b"1"


@frozen
class ListQuery:
    """The parameters of a ListObjects request.

    `max_keys` is 0..1000. Version 1 has `marker`, version 2 `start_after`, `continuation_token` and
    `fetch_owner`. None stands for a parameter that was not given; `delimiter` is "" then.
    """

    version: int
    prefix: str = ""
    delimiter: str = ""
    max_keys: int = MAX_KEYS
    encoding_url: bool = False
    marker: str | None = None
    start_after: str | None = None
    continuation_token: str | None = None
    fetch_owner: bool = False

    @classmethod
    def parse(cls, request: S3Request) -> ListQuery:
        """The list parameters of a request. Raises InvalidArgument for a value S3 does not take."""
        return cls(
            version=2 if request.operation is Operation.LIST_OBJECTS_V2 else 1,
            prefix=request.param("prefix") or "",
            delimiter=request.param("delimiter") or "",
            max_keys=_max_keys(request.param("max-keys")),
            encoding_url=_encoding_url(request.param("encoding-type")),
            marker=request.param("marker"),
            start_after=request.param("start-after"),
            continuation_token=_token(request.param("continuation-token")),
            fetch_owner=(request.param("fetch-owner") or "").lower() == "true",
        )

    @property
    def after(self) -> str:
        """The key or common prefix the page starts after; "" is the beginning. A token wins over start-after.

        Raises InvalidArgument for a token this proxy never gave.
        """
        if self.continuation_token is not None:
            return decode_token(self.continuation_token)
        return self.marker or self.start_after or ""


def encode_token(last: str) -> str:
    """An opaque continuation token for a page that ended with this key or common prefix."""
    return base64.urlsafe_b64encode(_TOKEN_VERSION + last.encode()).decode("ascii")


def decode_token(token: str) -> str:
    """The key or common prefix a token stands for.

    Raises InvalidArgument for what `encode_token` never gave.
    """
    try:
        raw = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
        last = raw.removeprefix(_TOKEN_VERSION).decode("utf-8")
    except (UnicodeError, binascii.Error):
        raise _bad_token() from None
    if not raw.startswith(_TOKEN_VERSION) or encode_token(last) != token:
        raise _bad_token()
    return last


def delimited(key: str, prefix: str, delimiter: str) -> str | None:
    """The common prefix that a key below `prefix` rolls up into, or None when the key stands for itself."""
    if not delimiter:
        return None
    end = key.find(delimiter, len(prefix))
    return None if end < 0 else key[: end + len(delimiter)]


def _max_keys(text: str | None) -> int:
    if text is None or text == "":
        return MAX_KEYS
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > 2**31 - 1:
        raise InvalidArgument(
            "Provided max-keys not an integer or within integer range",
            fields={"ArgumentName": "max-keys", "ArgumentValue": text[:100]},
        )
    return min(int(text), MAX_KEYS)


def _encoding_url(text: str | None) -> bool:
    if text not in {None, "", "url"}:
        raise InvalidArgument(
            "Invalid Encoding Method specified in Request",
            fields={"ArgumentName": "encoding-type", "ArgumentValue": (text or "")[:100]},
        )
    return text == "url"


def _token(text: str | None) -> str | None:
    if text == "":
        raise _bad_token()
    return text


def _bad_token() -> InvalidArgument:
    return InvalidArgument(
        "The continuation token provided is incorrect", fields={"ArgumentName": "continuation-token"}
    )
