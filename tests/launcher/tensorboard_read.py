"""Reads TensorBoard event files with nothing but Python: python3 tensorboard_read.py FILE...

Prints a JSON list with an object for each event: step, wall_time, and version, session or the scalars by tag.
Written from the descriptions of TFRecord and protobuf, apart from launcher/tensorboard.cpp: what both agree on is right.
A checksum or length that does not fit ends it with an error.
"""
import json
import struct
import sys


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def check(data, stored, what):
    crc = crc32c(data)
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    if masked != stored:
        sys.exit(f"{what}: stored checksum {stored:08x}, computed {masked:08x}")


def records(data):
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        check(data[at : at + 8], struct.unpack_from("<I", data, at + 8)[0], f"length at {at}")
        body = data[at + 12 : at + 12 + length]
        if len(body) != length:
            sys.exit(f"record at {at}: cut short")
        check(body, struct.unpack_from("<I", data, at + 12 + length)[0], f"record at {at}")
        yield body
        at += 16 + length


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def fields(data):
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = varint(data, at)
        elif kind == 1:
            value, at = struct.unpack_from("<d", data, at)[0], at + 8
        elif kind == 5:
            value, at = struct.unpack_from("<f", data, at)[0], at + 4
        elif kind == 2:
            length, at = varint(data, at)
            value, at = data[at : at + length], at + length
            if len(value) != length:
                sys.exit(f"field {number}: cut short")
        else:
            sys.exit(f"field {number}: unknown wire type {kind}")
        yield number, value


def event(body):
    told = {"step": 0}
    for number, value in fields(body):
        if number == 1:
            told["wall_time"] = value
        elif number == 2:
            told["step"] = value
        elif number == 3:
            told["version"] = value.decode()
        elif number == 5:
            told["scalars"] = {}
            for one, entry in fields(value):
                if one != 1:
                    sys.exit(f"summary: unknown field {one}")
                parts = dict(fields(entry))
                told["scalars"][parts[1].decode()] = parts[2]
        elif number == 7:
            told["session"] = dict(fields(value))[1]
        else:
            sys.exit(f"event: unknown field {number}")
    return told


all_events = []
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        all_events += [event(body) for body in records(file.read())]
print(json.dumps(all_events))
