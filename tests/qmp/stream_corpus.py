"""Bytes for a JSON stream: what clients send, what they should not, and what nobody would.

VALUES    each is text of one value, right or wrong; stands by itself and as the id of a command
STREAMS   messages and pieces of such, with what goes wrong between them
big()     what takes the server some seconds
mutated() as many more as wanted, out of these and a seed
"""
import random

PREFIX = b'{"execute": "query-name", "id": '

NUMBERS = b"""0 -0 1 -1 10 123 00 01 -01 -00 007 +1 - -- -a -.5 .5 1. 1.e 1.5 -1.5 1.50 0.1 0.10 1.2.3 1e 1e+ 1e- 1e3 1E3
1e+3 1e-3 1e03 1.5e3 1.5E-3 1.e3 0e0 0e1 0.0 0.0e0 -0.0 -0e1 0x10 1_000 1a 1e3a 1e3.5 1.5.5 1e400 -1e400 1e-400
9223372036854775807 9223372036854775808 -9223372036854775808 -9223372036854775809 18446744073709551615
18446744073709551616 99999999999999999999999 -99999999999999999999999 9007199254740993 9007199254740993.0
0.30000000000000004 123456789.123456789 1e22 1e23 5e-324 2.2250738585072014e-308 1.7976931348623157e308
1.7976931348623159e308 3.14159265358979323846264338327950288 1e16 1e17 123456789012345678 1.0 100.0 1e5 1e-5 1e-4
0.0001 0.00001 Infinity -Infinity NaN inf nan 1/2 1'2 1"2 12e""".split() + [b"1" * 400, b"0." + b"3" * 400, b"1e0000000003"]

WORDS = b"""true false null True FALSE nul nulll truefalse t x e abc a1 aB a_b a-b a.b tru\x00e tru\xc3\xa9 undefined
""".split() + [b"z" * n for n in (1000, 1004, 1005, 1006, 1007, 1008, 1009, 2000)]

_STRINGS = [
    # plain, and every byte that is looked at
    b"", b"a", b"a b", b"caf\xc3\xa9", b"\xe2\x82\xac", b"\xf0\x9f\x98\x80", b"100%", b"%d", b"%s%%", b"//", b"/* a */",
    b"\x7f", b"\x1f", b"\x01", b"\x00", b"a\x00b", b"\t", b"\n", b"\r", b"\x80", b"\xbf", b"\xc3", b"\xc3a", b"\xff", b"\xfe",
    b"\xfd", b"a\xffb", b"{[]},:",
    # escapes
    *(b"\\" + bytes([c]) for c in range(0x20, 0x80) if c != 0x75), b"\\\x00", b"\\\n", b"\\\x80", b"\\\xc3\xa9", b"\\\xff",
    b"\\\\", b"\\\\\\\\", b"\\b\\f\\n\\r\\t\\/", b"\\u0000", b"\\u0001", b"\\u001f", b"\\u0020", b"\\u0022", b"\\u0027", b"\\u005c",
    b"\\u002f", b"\\u007e", b"\\u007f", b"\\u0080", b"\\u00e9", b"\\u00E9", b"\\u07ff", b"\\u0800", b"\\uaBcD", b"\\ud7ff", b"\\ue000",
    b"\\ufdcf", b"\\ufdd0", b"\\ufdef", b"\\ufdf0", b"\\ufffd", b"\\ufffe", b"\\uffff", b"a\\u0000b\\u0000", b"\\u", b"\\u1", b"\\u12",
    b"\\u123", b"\\u12345", b"\\uxyzw", b"\\u00g0", b"\\u 123", b"\\u+123", b"\\u-123", b"\\u12\\n", b"\\u\\n", b"\\u\\u0041",
    b"\\u00\xc3\xa9", b"\\u\xc3\xa9\xc3\xa9", b"\\U0041", b"\\u12 and more text behind it",
    # surrogates
    b"\\ud800", b"\\udbff", b"\\udc00", b"\\udfff", b"\\ud800\\udc00", b"\\udbff\\udfff", b"\\uD834\\uDD1E", b"\\ud83d\\ude00",
    b"\\udc00\\ud800", b"\\udc00\\udc00", b"\\ud800\\ue000", b"\\ud800\\ud800", b"\\ud800\\u0041", b"\\ud800a", b"\\ud800\\n", b"\\ud800\\", b"\\ud800\\u", b"\\ud800\\udc0",
    b"\\ud800\\uxxxx", b"\\ud83f\\udffe", b"\\ud83f\\udfff", b"\\udbff\\udffe", b"\\ud800\\udc00\\ud800", b"\xed\xa0\x80",
    b"\xed\xbf\xbf", b"\xed\xa0\x80\xed\xb0\x80",
    # UTF-8: the ends of each length, too long ones, too short ones, noncharacters, and what is beyond Unicode
    b"\xc2\x80", b"\xdf\xbf", b"\xe0\xa0\x80", b"\xef\xbf\xbd", b"\xf0\x90\x80\x80", b"\xf4\x8f\xbf\xbd", b"\xf4\x8f\xbf\xbe",
    b"\xf4\x90\x80\x80", b"\xf7\xbf\xbf\xbf", b"\xf8\x88\x80\x80\x80", b"\xfb\xbf\xbf\xbf\xbf", b"\xfc\x84\x80\x80\x80\x80",
    b"\xfd\xbf\xbf\xbf\xbf\xbf", b"\xc0\x80", b"a\xc0\x80b", b"\xc0\xaf", b"\xc1\xbf", b"\xe0\x80\x80", b"\xe0\x80\xaf", b"\xe0\x9f\xbf",
    b"\xf0\x80\x80\x80", b"\xf0\x8f\xbf\xbf", b"\xf8\x80\x80\x80\xaf", b"\xfc\x80\x80\x80\x80\xaf", b"\xe2\x82", b"\xe2\x82a",
    b"\xf0\x9f\x98", b"\xf0\x9f", b"\xf0", b"\xf8\x88\x80\x80", b"\xfc\x84\x80\x80\x80", b"\xc3\xc3\xa9", b"\xef\xbf\xbe",
    b"\xef\xbf\xbf", b"\xef\xb7\x90", b"\xef\xb7\xaf", b"\xef\xb7\xb0", b"\xf0\x9f\xbf\xbe", b"\xf0\x9f\xbf\xbf", b"\xee\x80\x80",
    bytes(range(0x20, 0x7f)).replace(b'"', b"").replace(b"'", b"").replace(b"\\", b""),
]

STRINGS = [mark + text + mark for text in _STRINGS for mark in (b'"', b"'")] + [
    b"'\"'", b'"\'"', b"'\\\"'", b'"\\\'"', b"'it\\'s'", b'"a\'b"', b"'a\"b\"'", b'"a" "b"', b"'a'b'", b"''''", b'""""', b'"', b"'", b'"a',
    b"'a", b'"\\"', b"'\\'", b'"a\nb"', b'"' + b"a" * 5000 + b'"', b'"' + b"\xc3\xa9" * 3000 + b'"', b"`a`", b'"a\'', b"'a\"",
]

CONTAINERS = b"""[] {} [[]] [{}] [1] [1,2] [1,[2,[3]]] {"a":1} {'a':1} {"a":{"b":[]}} [,] [1,] [,1] [1,,2] [1 2] [1:2] [:] [ }
{ ] [1} {"a"] {"a":1] {"a":[1} {"a":[1}] [{"a":1]} [{] [}] ] } ]] }} , : ,, {,} {:} {"a"} {"a":} {"a",} {"a" 1} {"a"=1} {"a":1,}
{"a":1,,} {,"a":1} {"a":1"b":2} {"a":1:2} {"a":1;2} {"a"::1} {1:2} {true:1} {null:1} {x:1} {[]:1} {{}:1} {{"a":1}:2} {["b",2]:3}
{[x]:1} {"a":x} {"a":x,y} {x,y} [x,y] [x,} {"a":1,"a":2} {"a":1,'a':2} {"a":1,"\\u0061":2} {"a":1,"b":2,"a":3}
{"a":1,"a":x} {"a":1,"a":} {"a":1,"a"} {"a":{"a":1},"b":{"a":1}} {"a":{"a":1,"a":2}} [{"a":1},{"a":1}] {"":1} {"":1,"":2}
{"\\u0000":1} {"\\u0000":1,"":2} {"\\u0000":1,"\\u0000":2} {"a\\u0000b":1} {"a\\u0000b":1,"a\\u0000c":2} {"a\\u0000":1,"a":2}
{"\xc3\xa9":1,"\\u00e9":2} {"\\"":1,"'":2} {"\\n":1} {"\xff":1} {"\xc3":1} {"\\ud800":1} {"\\x":1} {01:2} [01] [X] [1X] [%d] %d %s {%d:1}
{"a":%d} [1//2] [#] [;] (1) <1> 1,2 1:2 "a":1 {"a":1}} [1]] [{"a":1}}] [[1]}] @ $ & * = ? ! | ~ ^ ` \\ \\n /* //
{"a":1/**/} [1,2,3,4,5,6,7,8,9,10] {"a":null} [null] [true,false,null] [nulll] [true false] {"true":true} ["a""b"] ["a"x] [1.5.5]
[1.5,1.50,15e-1] [0,-0,0.0,-0.0] [1e1000,-1e1000] [18446744073709551615,18446744073709551616]""".split()


def nested(depth, opening=b"[", closing=b"]"):
    return opening * depth + closing * depth


NESTED = [nested(depth) for depth in (5, 30, 31, 32, 33, 1022, 1023, 1024, 1025, 1100)] + [
    nested(depth, b'{"a":', b"}").replace(b":}", b":1}") for depth in (31, 32, 1022, 1023, 1024, 1025)] + [
    nested(512, b'[{"a":', b"}]").replace(b":}", b":1}"), b"[" * 1024 + b"}", b"[" * 1023 + b"{" + b"x" + b"}" + b"]" * 1023]

VALUES = NUMBERS + WORDS + STRINGS + CONTAINERS + NESTED

STREAMS = [
    # between messages
    b"", b" ", b"\n", b"\r\n\t ", b"\x0b", b"\x0c", b"\x00", b"\x00\x00", b"\x01", b"\x01\x01\x01", b"\xff", b"\xff\xff", b"\xfe", b"\xef\xbb\xbf",
    b"\xef\xbb\xbf{}", b"{}{}", b"{}{}{}\n", b"{} {}\r\n{}", b"[][]", b"1 2 3 ", b"1\n2\n", b'"a""b"', b"'a''b'\"c\"", b"nulltrue ", b"null true ",
    b"1true ", b"true1 ", b"1[2]3{}", b"1-2 ", b"1+2 ", b"-1-1 ", b"1.5.5 ", b"1e5e5 ", b"00 ", b"0\x001 ", b"1\x002 ", b"1\xff2 ", b"12\x01", b"x\x01y ",
    # what a mistake takes with it
    b"X{}", b"X {}", b"X\n{}", b"X[1]", b"X]", b"X:1\n", b"X,1\n", b"X1\n2 ", b'X "a" 1\n2 ', b"X\t1\n2 ", b"X\x001 ", b"X\x01{}", b"X\xff{}", b"X\xfd{}\n",
    b"[1,X,2]", b"[1,X 2]\n3 ", b'{"a":X,"b":1}', b"{X}", b"{X\n}", b"[\x01]", b"[[[\x01]]]", b"[[[\x01\n]]]", b"{\xff}", b'"a\x01b"\n', b'"a\nb"\n', b"'a\xff'{}",
    b"[1,2\x01,3]\n", b'{"a":"b\x01c"}\n', b"01 2\n3 ", b"-x\n", b"1.x\n", b"1ex\n", b"1e+x\n", b"x1X\n", b"%d\n", b"[%d]\n", b"\\u0041\n", b"\\\"\n\"",
    # broken off, and brought back into step
    b"{", b"[", b"{\x01", b"[1,\x01", b'{"a":\x01', b'{"execute":\n\x01{}', b'{"execute":"query-name"\n', b'{"execute":"quer\x01', b'{"execute":"quer\n{}',
    b'{"execute":"query-name"}', b"{'execute':'query-name'}", b' {"execute" : "query-name" }\r\n', b'{"execute":"query-name"}' * 20,
    b'{"execute":"query-name"}\n' * 20, b'{"execute":"query-name","id":1}{"execute":"query-name","id":2}',
    b'{"execute":"query-name","id":1}x{"execute":"query-name","id":2}', b'{"execute":"query-name","id":1}}{"execute":"query-name","id":2}',
    b'{"execute":"query-name","id":1}]{"execute":"query-name","id":2}', b'{"execute":"query-name","id":1},{"execute":"query-name","id":2}',
    b'{"execute":"query-name","id":1}\x01{"execute":"query-name","id":2}', b'{"execute":"query-name","id":[1}{"execute":"query-name","id":2}]}',
    b'{"execute":"query-name","id":"a}{"execute":"query-name","id":"b"}', b'"' + b'{"execute":"query-name"}' * 3,
    b"\xff{'execute':'query-name','id':1}", b"\x00{'execute':'query-name','id':1}\x00",
]


def big():
    """Names and bytes; with a command around them where they are values."""
    return [
        ("a string of 1 MiB", PREFIX + b'"' + b"abcdefgh" * (1 << 17) + b'"}'),
        ("65536 elements", PREFIX + b"[" + b"1," * 65535 + b"1]}"),
        ("too many tokens", b"[" + b"," * (2 << 20) + b"{}"),
    ]


_PIECES = [b"{", b"}", b"[", b"]", b",", b":", b'"', b"'", b"\\", b"\\u", b"d800", b"dc00", b"\\ud83d", b"\\ude00", b"0", b"1", b"9", b"-", b"+", b".", b"e",
           b"E", b"1.5", b"x", b"true", b"null", b" ", b"\t", b"\n", b"\x00", b"\x01", b"\x1f", b"\x7f", b"\x80", b"\xc0", b"\xc3", b"\xe2", b"\x82", b"\xac",
           b"\xed", b"\xf0", b"\x9f", b"\xf8", b"\xfc", b"\xfe", b"\xff", b"%", b"/", b'"a"', b"'b'", b'"a":', b"1,", b'{"a":1}', b"[1]"]


def _mutate(chance, text):
    """Some bytes of @text taken out, doubled, exchanged, or something put between."""
    text = bytearray(text)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(text) + 1)
        what = chance.randrange(4)
        if what == 0:
            del text[at:at + chance.randint(1, 3)]
        elif what == 1:
            text[at:at] = chance.choice(_PIECES)
        elif what == 2:
            text[at:at + 1] = bytes([chance.randrange(256)])
        else:
            text[at:at] = text[at:at + chance.randint(1, 8)]
    return bytes(text)


def mutated(count, seed):
    chance = random.Random(seed)
    seeds = [text for text in VALUES + STREAMS if len(text) < 200]
    for i in range(count):
        if i % 2:
            yield b"".join(chance.choice(_PIECES) for _ in range(chance.randint(1, 12)))
            continue
        text = chance.choice(seeds)
        if chance.random() < 0.7:
            text = PREFIX + text + b"}"
        yield _mutate(chance, text)
