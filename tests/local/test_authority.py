"""The authority of `--mitm`: what it writes, and what it refuses to use."""

from __future__ import annotations

import os
import pathlib
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from delta_proxy.local_helper.authority import UnusableAuthority, certificate_file, open_authority

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def mode(path: pathlib.Path) -> int:
    return path.stat().st_mode & 0o777


def test_the_key_is_its_owners_alone_whatever_the_umask(tmp_path: pathlib.Path) -> None:
    before = os.umask(0)
    try:
        open_authority(tmp_path / "a" / "b", NOW)
    finally:
        os.umask(before)
    assert mode(tmp_path / "a" / "b" / "ca.key") == 0o600
    assert mode(tmp_path / "a" / "b") == 0o700


def test_the_authority_signs_for_hosts_and_for_no_other_authority(tmp_path: pathlib.Path) -> None:
    open_authority(tmp_path, NOW)
    certificate = x509.load_pem_x509_certificate(certificate_file(tmp_path).read_bytes())
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)


def test_the_same_authority_is_used_again(tmp_path: pathlib.Path) -> None:
    open_authority(tmp_path, NOW)
    before = (tmp_path / "ca.key").read_bytes()
    open_authority(tmp_path, NOW + timedelta(days=1000))
    assert (tmp_path / "ca.key").read_bytes() == before


def test_a_host_gets_one_certificate_until_it_is_due(tmp_path: pathlib.Path) -> None:
    authority = open_authority(tmp_path, NOW)
    first = authority.context("proxy.example", NOW)
    assert authority.context("proxy.example", NOW + timedelta(days=28)) is first
    assert authority.context("proxy.example", NOW + timedelta(days=29, hours=1)) is not first
    assert authority.context("127.0.0.1", NOW) is not first


def test_a_key_that_others_may_read_is_refused(tmp_path: pathlib.Path) -> None:
    open_authority(tmp_path, NOW)
    (tmp_path / "ca.key").chmod(0o640)
    with pytest.raises(UnusableAuthority, match=r"others may read it \(mode 0640\)"):
        open_authority(tmp_path, NOW)


@pytest.mark.parametrize("name", ["ca.key", "ca.pem"])
def test_half_an_authority_is_refused(tmp_path: pathlib.Path, name: str) -> None:
    open_authority(tmp_path, NOW)
    (tmp_path / name).unlink()
    with pytest.raises(UnusableAuthority, match=name):
        open_authority(tmp_path, NOW)


@pytest.mark.parametrize("name", ["ca.key", "ca.pem"])
def test_a_broken_authority_is_refused(tmp_path: pathlib.Path, name: str) -> None:
    open_authority(tmp_path, NOW)
    (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(UnusableAuthority):
        open_authority(tmp_path, NOW)


def test_a_key_of_another_authority_is_refused(tmp_path: pathlib.Path) -> None:
    open_authority(tmp_path / "one", NOW)
    open_authority(tmp_path / "two", NOW)
    (tmp_path / "one" / "ca.key").write_bytes((tmp_path / "two" / "ca.key").read_bytes())
    with pytest.raises(UnusableAuthority, match="is not the key of"):
        open_authority(tmp_path / "one", NOW)


def test_an_authority_near_its_end_is_refused(tmp_path: pathlib.Path) -> None:
    open_authority(tmp_path, NOW)
    with pytest.raises(UnusableAuthority, match="ends on 2030-12-31"):
        open_authority(tmp_path, NOW + timedelta(days=5 * 365 - 10))
