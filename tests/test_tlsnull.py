"""TLS framing without cipher: the bytes; tests/test_synth.py shows that Wireshark opens them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlscap import tlsnull
from tlscap.errors import CorruptError
from tlscap.model import Role

SETTINGS = bytes.fromhex("000006040000000000000300000064")


@given(data=st.binary(max_size=100))
def test_a_record_holds_its_data_in_plain(data: bytes) -> None:
    """5 bytes before, 20 zero bytes after, and the reader takes both off again."""
    record = tlsnull.application_record(data)
    assert record == b"\x17\x03\x03" + (len(data) + 20).to_bytes(2, "big") + data + bytes(20)
    assert tlsnull.plaintext(record) == data
    assert tlsnull.plaintext(record + record) == data + data


def test_a_record_is_not_larger_than_tls_allows() -> None:
    """Wireshark reports an error for records above 2**14."""
    tlsnull.application_record(bytes(16384))
    with pytest.raises(ValueError, match="16385"):
        tlsnull.application_record(bytes(16385))


def test_hellos_hold_no_plaintext() -> None:
    """What the reader gets from the preamble is nothing."""
    hellos = tlsnull.client_hello(b"seed", sni="a.example", alpn="h2") + tlsnull.server_flight(b"seed", alpn="h2")
    assert tlsnull.plaintext(hellos + tlsnull.CHANGE_CIPHER_SPEC) == b""


def test_hellos_depend_on_the_seed_alone() -> None:
    """The same flow gives the same bytes, another flow another random, and the two sides differ."""
    client, server = tlsnull.client_hello(b"seed"), tlsnull.server_flight(b"seed")
    assert client == tlsnull.client_hello(b"seed") != tlsnull.client_hello(b"other")
    assert server == tlsnull.server_flight(b"seed") != tlsnull.server_flight(b"other")
    random = slice(11, 43)  # after record header, handshake header and version
    assert client[random] != server[random]


def test_names_stand_in_the_hellos() -> None:
    """SNI and ALPN in the client's, ALPN also in the server's; without names there are no extensions."""
    client = tlsnull.client_hello(b"", sni="a.example", alpn="h2")
    assert client.endswith(b"\0\0\0\x0e\0\x0c\0\0\x09a.example" + b"\0\x10\0\x05\0\x03\x02h2")
    assert b"\0\x10\0\x05\0\x03\x02h2" in tlsnull.server_flight(b"", alpn="h2")
    assert tlsnull.client_hello(b"").endswith(b"\0\x02\0\x02\x01\0")  # one suite, no compression, end


def test_overlong_names_are_cut_to_what_the_fields_hold() -> None:
    """An ALPN protocol's length has one byte."""
    assert tlsnull.plaintext(tlsnull.client_hello(b"", sni="s" * 300, alpn="a" * 300)) == b""


@pytest.mark.parametrize(
    "records",
    [
        b"\x17\x03",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x17\x03\x03\x00\x14" + bytes(19),
        b"\x17\x03\x03\x00\x13" + bytes(19),
        b"\x15\x03\x03\x00\x02\x01\x00",
        b"\x17\x03\x01\x00\x14" + bytes(20),
    ],
)
def test_other_bytes_are_corrupt(records: bytes) -> None:
    """Cut records, no records, alerts and other versions were not made by tlscap."""
    with pytest.raises(CorruptError):
        tlsnull.plaintext(records)


@pytest.mark.parametrize(
    ("data", "alpn", "sender"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "http/1.1", Role.CLIENT),
        (b"PROPFIND /dav HTTP/1.1\r\n", "http/1.1", Role.CLIENT),
        (b"M-SEARCH * HTTP/1.1\r\n", "http/1.1", Role.CLIENT),
        (b"CONNECT example.com:443 HTTP/1.1\r\n", "http/1.1", Role.CLIENT),
        (b"GET http://example.com/ HTTP/1.0\r\n", "http/1.1", Role.CLIENT),
        (b"GET /" + b"a" * 20000, "http/1.1", Role.CLIENT),
        (b"HTTP/1.1 200 OK\r\n", "http/1.1", Role.SERVER),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS, "h2", Role.CLIENT),
        (b"PRI * HT", "h2", Role.CLIENT),
        (SETTINGS, "h2", Role.UNKNOWN),
        (SETTINGS + bytes.fromhex("000004080000000000") + b"\0\0\xff\xff", "h2", Role.UNKNOWN),
        (bytes.fromhex("000800000100000003") + b"body", "h2", Role.UNKNOWN),
        (bytes.fromhex("00001001040000000b") + b"x" * 16 + b"GET / HTTP/1.1\r\n", "", Role.UNKNOWN),
        (b"", "", Role.UNKNOWN),
        (b"G", "", Role.UNKNOWN),
        (bytes(9), "", Role.UNKNOWN),
        (b"EHLO mail.example\r\n", "", Role.UNKNOWN),
        (b"OPTIONS sip:bob@example SIP/2.0\r\n", "", Role.UNKNOWN),
        (b"OPTIONS * RTSP/1.0\r\n", "", Role.UNKNOWN),
        (b"* OK IMAP4rev1 ready\r\n", "", Role.UNKNOWN),
        (b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00", "", Role.UNKNOWN),
        (bytes.fromhex("0000004f00030000") + b"user\0bob\0", "", Role.UNKNOWN),
        (bytes.fromhex("000000240012000400000001") + b"\0\x0cclient", "", Role.UNKNOWN),
    ],
)
def test_protocol_and_sender_are_guessed_from_the_first_bytes(data: bytes, alpn: str, sender: Role) -> None:
    """HTTP/1 by its lines, HTTP/2 by the preface or by frame headers that make sense, nothing else."""
    assert tlsnull.sniff_alpn(data) == alpn
    assert tlsnull.sniff_sender(data) is sender


@given(data=st.binary(max_size=60))
def test_any_first_bytes_can_be_looked_at(data: bytes) -> None:
    """A guess never fails."""
    assert tlsnull.sniff_alpn(data) in {"", "h2", "http/1.1"}
    assert tlsnull.sniff_sender(data) in Role


def test_the_usual_tls_ports_get_tls_framing() -> None:
    """Plain is for ports of other dissectors."""
    assert tlsnull.PLAIN_PORTS.isdisjoint({443, 465, 636, 853, 993, 995, 6443, 8443, 8883, 9093, 9443})
    assert {25, 80, 5432, 6063, 8080} <= tlsnull.PLAIN_PORTS
