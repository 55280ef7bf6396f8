"""The FILE ccache format, versions 4 and 3: bytes to values, and the entries that we write back to bytes.

Pure: no file, no clock. The format is MIT's "Credential cache file format"
(https://web.mit.edu/kerberos/krb5-latest/doc/formats/ccache_file_format.html); everything is big-endian. Every length
and count is checked against the bytes that are there before it is used, and capped, so that no input costs more than
its size. Versions 1 and 2 are in the byte order of the machine that wrote them and are refused by name.
"""

from __future__ import annotations

import struct

MAX_SIZE = 4 * 1024 * 1024  # a ccache is 1 KiB; a private one with hundreds of service tickets and PACs is 1 MiB
MAX_COMPONENTS = 64
MAX_ADDRESSES = 256
MAX_AUTHDATA = 256
MAX_CREDENTIALS = 2048
MAX_NAME = 2048  # bytes of one principal as it stands in the file
MAX_PARTS = 16384  # components, addresses and authorization data of all entries: what takes time to read

_KDC_OFFSET_TAG = 1
_CONFIG_REALM = b"X-CACHECONF:"
_CONFIG_NAME = b"krb5_ccache_conf_data"
_REMOVED_CONFIG_REALM = b"X-RMED-CONF:"

_u16 = struct.Struct(">H").unpack_from
_u32 = struct.Struct(">I").unpack_from
_two_u32 = struct.Struct(">II").unpack_from
_tag_length = struct.Struct(">HH").unpack_from
_offset_field = struct.Struct(">ii").unpack_from
_key_v4 = struct.Struct(">HI").unpack_from
_key_v3 = struct.Struct(">HHI").unpack_from
_times_skey_flags = struct.Struct(">IIIIBI").unpack_from
_typed_length = struct.Struct(">HI").unpack_from

# How MIT's krb5_unparse_name writes what would be read as a separator or not be read at all; the backslash comes first.
_ESCAPES = {"\\": "\\\\", "/": "\\/", "@": "\\@", "\n": "\\n", "\t": "\\t", "\b": "\\b", "\0": "\\0"}
_UNESCAPED = {"n": "\n", "t": "\t", "b": "\b", "0": "\0"}


def _escape(text: str) -> str:
    for letter, escape in _ESCAPES.items():  # seven times replace costs a tenth of one translate
        text = text.replace(letter, escape)
    return text


class CcacheFormatError(ValueError):
    """These bytes are not one whole ccache of version 3 or 4."""


class Principal:
    """A principal's name: `realm` and `components` as bytes, `name_type` as in RFC 4120, 6.2.

    Two are equal when realm and components are; the name type is a hint and does not count (RFC 4120, 6.2).
    `str()` gives the name as MIT's tools print it, with its escapes.
    """

    __slots__ = ("components", "name_type", "realm")

    def __init__(self, realm: bytes, components: tuple[bytes, ...], name_type: int = 1) -> None:
        self.realm = realm
        self.components = components
        self.name_type = name_type

    @classmethod
    def parse(cls, name: str) -> Principal:
        """`primary/instance@REALM`, with MIT's backslash escapes, to a value.

        Raises ValueError where there is no realm or the name is malformed.
        """
        parts = [""]
        separators: list[str] = []
        letters = iter(name)
        for letter in letters:
            if letter == "\\":
                letter = next(letters, "")
                if not letter:
                    raise ValueError(f"principal {name!r} ends in a backslash")
                parts[-1] += _UNESCAPED.get(letter, letter)
            elif letter in "/@":
                separators.append(letter)
                parts.append("")
            elif letter == "\0":
                raise ValueError("a principal's name has no NUL in it")
            else:
                parts[-1] += letter
        if separators[-1:] != ["@"] or separators.count("@") != 1 or not parts[-1]:
            raise ValueError(f"principal {name!r} is not of the form NAME@REALM")
        encoded = [part.encode("utf-8", "surrogateescape") for part in parts]
        return cls(encoded[-1], tuple(encoded[:-1]))

    def __str__(self) -> str:
        parts = [part.decode("utf-8", "surrogateescape") for part in (*self.components, self.realm)]
        escaped = [part if part.isalnum() else _escape(part) for part in parts]
        return "/".join(escaped[:-1]) + "@" + escaped[-1]

    def __repr__(self) -> str:
        return f"Principal({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Principal):
            return NotImplemented
        return self.components == other.components and self.realm == other.realm

    def __hash__(self) -> int:
        return hash((self.realm, self.components))


class Credential:
    """One entry of a ccache: a ticket, or a configuration entry that is stored in the form of one.

    Times are unsigned Unix seconds by the KDC's clock; `starttime` 0 means `authtime`. `span` is where the entry stands
    in the file. `key` is the session key: it is here because the format has it, and `repr` shows neither it nor the
    ticket.
    """

    __slots__ = (
        "addresses",
        "authdata",
        "authtime",
        "client",
        "enctype",
        "endtime",
        "flags",
        "is_skey",
        "key",
        "renew_till",
        "second_ticket",
        "server",
        "span",
        "starttime",
        "ticket",
    )

    def __init__(
        self,
        client: Principal,
        server: Principal,
        *,
        enctype: int = 0,
        key: bytes = b"",
        authtime: int = 0,
        starttime: int = 0,
        endtime: int = 0,
        renew_till: int = 0,
        is_skey: int = 0,
        flags: int = 0,
        addresses: tuple[tuple[int, bytes], ...] = (),
        authdata: tuple[tuple[int, bytes], ...] = (),
        ticket: bytes = b"",
        second_ticket: bytes = b"",
        span: tuple[int, int] = (0, 0),
    ) -> None:
        self.client = client
        self.server = server
        self.enctype = enctype
        self.key = key
        self.authtime = authtime
        self.starttime = starttime
        self.endtime = endtime
        self.renew_till = renew_till
        self.is_skey = is_skey
        self.flags = flags
        self.addresses = addresses
        self.authdata = authdata
        self.ticket = ticket
        self.second_ticket = second_ticket
        self.span = span

    @property
    def config_key(self) -> bytes | None:
        """The key of a configuration entry (its value is `ticket`), or None where this is a ticket."""
        server = self.server
        if server.realm == _CONFIG_REALM and len(server.components) > 1 and server.components[0] == _CONFIG_NAME:
            return server.components[1]
        return None

    @property
    def removed(self) -> bool:
        """Whether libkrb5 has struck this entry out; it overwrites times or realm in place and keeps the rest."""
        return (self.endtime == 0 and self.authtime != 0) or self.server.realm == _REMOVED_CONFIG_REALM

    @property
    def is_ticket(self) -> bool:
        """Whether this is a ticket that libkrb5 would use: neither configuration nor struck out."""
        return self.server.realm != _CONFIG_REALM and not self.removed

    def __repr__(self) -> str:
        return f"Credential(client={self.client}, server={self.server}, endtime={self.endtime}, flags={self.flags:#x})"


class Ccache:
    """A parsed ccache: `version` (3 or 4), `principal` (the default one), `credentials` in the file's order, and
    `kdc_offset`, the header's (seconds, microseconds) to add to the local clock for the KDC's, or None."""

    __slots__ = ("credentials", "kdc_offset", "principal", "version")

    def __init__(
        self,
        version: int,
        principal: Principal,
        credentials: tuple[Credential, ...],
        kdc_offset: tuple[int, int] | None = None,
    ) -> None:
        self.version = version
        self.principal = principal
        self.credentials = credentials
        self.kdc_offset = kdc_offset

    def __repr__(self) -> str:
        return f"Ccache(version={self.version}, principal={self.principal}, credentials={len(self.credentials)})"


def parse(data: bytes) -> Ccache:
    """The ccache that `data` is, whole.

    Raises CcacheFormatError, which says what is wrong and at which byte; nothing else.
    """
    size = len(data)
    if size > MAX_SIZE:
        raise CcacheFormatError(f"it has {size} bytes; no more than {MAX_SIZE} are read")
    if size < 2:
        raise CcacheFormatError("it is empty" if not size else "it is one byte long")
    version = data[1]
    if data[0] != 5 or version not in (3, 4):
        if data[0] == 5 and version in (1, 2):
            raise CcacheFormatError(f"it is of version {version}, whose byte order is unknown; 3 and 4 are read")
        raise CcacheFormatError(f"it is not a FILE ccache (it begins with {data[:2].hex(' ')})")
    try:
        kdc_offset, pos = _read_header(data, size) if version == 4 else (None, 2)
        principal, credentials_start = _read_principal(data, pos, size)
        # Nearly every entry's client is the default principal: recognise its bytes instead of reading them again.
        client_bytes = data[pos:credentials_start]
        pos = credentials_start
        credentials: list[Credential] = []
        parts = 0
        while pos < size:
            if len(credentials) == MAX_CREDENTIALS:
                raise CcacheFormatError(f"it has more than {MAX_CREDENTIALS} entries")
            credential, pos = _read_credential(data, pos, size, version, principal, client_bytes)
            credentials.append(credential)
            parts += len(credential.server.components) + len(credential.addresses) + len(credential.authdata)
            if credential.client is not principal:
                parts += len(credential.client.components)
            if parts > MAX_PARTS:
                raise CcacheFormatError(f"its entries have more than {MAX_PARTS} parts")
    except struct.error:
        raise CcacheFormatError(f"it ends in the middle of an entry (at byte {size})") from None
    return Ccache(version, principal, tuple(credentials), kdc_offset)


def _read_header(data: bytes, size: int) -> tuple[tuple[int, int] | None, int]:
    """The KDC time offset, if the version 4 header has it, and where the header ends."""
    end = 4 + _u16(data, 2)[0]
    if end > size:
        raise struct.error
    offset: tuple[int, int] | None = None
    pos = 4
    while pos < end:
        if pos + 4 > end:
            raise CcacheFormatError(f"its header has a torn field (at byte {pos})")
        tag, length = _tag_length(data, pos)
        pos += 4
        if pos + length > end:
            raise CcacheFormatError(f"a field of its header is longer than the header (at byte {pos})")
        if tag == _KDC_OFFSET_TAG:
            if length != 8:
                raise CcacheFormatError(f"its KDC time offset has {length} bytes and not 8 (at byte {pos})")
            offset = _offset_field(data, pos)
        pos += length
    return offset, pos


def _read_principal(data: bytes, pos: int, size: int) -> tuple[Principal, int]:
    start = pos
    name_type, count = _two_u32(data, pos)
    # Each component, and the realm, has a length of four bytes at the least.
    if count > MAX_COMPONENTS or (count + 1) * 4 > size - pos:
        raise CcacheFormatError(f"a principal claims {count} components (at byte {start})")
    pos += 8
    parts: list[bytes] = []
    for _ in range(count + 1):
        pos += 4
        end = pos + _u32(data, pos - 4)[0]
        if end > size:
            raise struct.error
        parts.append(data[pos:end])
        pos = end
    if pos - start > MAX_NAME:
        raise CcacheFormatError(f"a principal has {pos - start} bytes (at byte {start})")
    return Principal(parts[0], tuple(parts[1:]), name_type), pos


def _read_list(data: bytes, pos: int, size: int, most: int, what: str) -> tuple[tuple[tuple[int, bytes], ...], int]:
    """A counted list of {u16 type, u32 length, bytes}: addresses, authorization data."""
    (count,) = _u32(data, pos)
    pos += 4
    if not count:
        return (), pos
    if count > most or count * 6 > size - pos:
        raise CcacheFormatError(f"an entry claims {count} {what} (at byte {pos})")
    items: list[tuple[int, bytes]] = []
    for _ in range(count):
        kind, length = _typed_length(data, pos)
        pos += 6
        end = pos + length
        if end > size:
            raise struct.error
        items.append((kind, data[pos:end]))
        pos = end
    return tuple(items), pos


def _read_credential(
    data: bytes, pos: int, size: int, version: int, principal: Principal, client_bytes: bytes
) -> tuple[Credential, int]:
    start = pos
    if data.startswith(client_bytes, pos):
        client = principal
        pos += len(client_bytes)
    else:
        client, pos = _read_principal(data, pos, size)
    server, pos = _read_principal(data, pos, size)
    if version == 4:
        enctype, length = _key_v4(data, pos)
        pos += 6
    else:
        enctype, _, length = _key_v3(data, pos)  # written twice; libkrb5 takes the first
        pos += 8
    key_end = pos + length
    if key_end > size:
        raise struct.error
    key = data[pos:key_end]
    authtime, starttime, endtime, renew_till, is_skey, flags = _times_skey_flags(data, key_end)
    addresses, pos = _read_list(data, key_end + 21, size, MAX_ADDRESSES, "addresses")
    authdata, pos = _read_list(data, pos, size, MAX_AUTHDATA, "authorization data")
    pos += 4
    end = pos + _u32(data, pos - 4)[0]
    if end > size:
        raise struct.error
    ticket = data[pos:end]
    pos = end + 4
    end = pos + _u32(data, end)[0]
    if end > size:
        raise struct.error
    credential = Credential(
        client,
        server,
        enctype=enctype,
        key=key,
        authtime=authtime,
        starttime=starttime,
        endtime=endtime,
        renew_till=renew_till,
        is_skey=is_skey,
        flags=flags,
        addresses=addresses,
        authdata=authdata,
        ticket=ticket,
        second_ticket=data[pos:end],
        span=(start, end),
    )
    return credential, end


def tgt_name(realm: bytes) -> Principal:
    """The name of the TGT of a realm for itself (RFC 4120, 7.3)."""
    return Principal(realm, (b"krbtgt", realm), 2)


def encode_header(kdc_offset: tuple[int, int] | None) -> bytes:
    """The first bytes of a version 4 file, with the KDC time offset (seconds, microseconds) where it is known."""
    if kdc_offset is None:
        return b"\x05\x04\x00\x00"
    return struct.pack(">BBHHHii", 5, 4, 12, _KDC_OFFSET_TAG, 8, *kdc_offset)


def encode_principal(principal: Principal) -> bytes:
    """A principal as it stands in a file of version 3 or 4."""
    parts = [struct.pack(">II", principal.name_type, len(principal.components)), _data(principal.realm)]
    parts += [_data(component) for component in principal.components]
    return b"".join(parts)


def encode_credential(credential: Credential) -> bytes:
    """An entry as it stands in a version 4 file."""
    return b"".join(
        (
            encode_principal(credential.client),
            encode_principal(credential.server),
            struct.pack(">H", credential.enctype),
            _data(credential.key),
            struct.pack(
                ">IIIIBI",
                credential.authtime,
                credential.starttime,
                credential.endtime,
                credential.renew_till,
                credential.is_skey,
                credential.flags,
            ),
            _list(credential.addresses),
            _list(credential.authdata),
            _data(credential.ticket),
            _data(credential.second_ticket),
        )
    )


def config_entry(client: Principal, key: bytes, value: bytes) -> bytes:
    """The bytes of a configuration entry, as krb5_cc_set_config writes it for the whole ccache."""
    server = Principal(_CONFIG_REALM, (_CONFIG_NAME, key))
    return encode_credential(Credential(client, server, ticket=value))


def _data(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def _list(items: tuple[tuple[int, bytes], ...]) -> bytes:
    return struct.pack(">I", len(items)) + b"".join(struct.pack(">H", kind) + _data(value) for kind, value in items)
