"""What is shown of a build's log."""

from __future__ import annotations

import pytest

from kodojo.check.build.complaints import complaints, last_words, missing_on_this_machine

COMPILER = """\
make -C /headers M=/build
make[1]: Entering directory '/headers'
  CC [M]  /build/vpoll.o
In file included from /build/vpoll.c:1:
/build/vpoll.c: In function 'myinit':
/headers/include/linux/init.h:180:22: error: passing argument 1 of 'class_create' from incompatible type [-Werror=odd]
  180 | #define THIS_MODULE (&__this_module)
/build/vpoll.c:112:44: note: in expansion of macro 'THIS_MODULE'
/build/vpoll.c:112:31: error: too many arguments to function 'class_create'
/build/vpoll.c:112:31: error: too many arguments to function 'class_create'
/headers/include/linux/module.h:9:2: error: in the header itself
make[2]: *** [/headers/scripts/Makefile.build:234: /build/vpoll.o] Error 1
"""


def test_compilers():
    """The compiler's errors, each once, by paths below the source; one in a header's macro is where that is used."""
    assert complaints(COMPILER, ["/build", "/headers"]) == [
        "vpoll.c:112:44: error: passing argument 1 of 'class_create' from incompatible type",
        "vpoll.c:112:31: error: too many arguments to function 'class_create'",
        "include/linux/module.h:9:2: error: in the header itself",
    ]


@pytest.mark.parametrize(
    ("log", "complaint"),
    [
        ("a.c:1:10: fatal error: x.h: No such file", "a.c:1:10: fatal error: x.h: No such file"),
        ('ERROR: modpost: "x" [/build/a.ko] undefined!\nmake: *** Error 1', 'ERROR: modpost: "x" [a.ko] undefined!'),
        ("checking...\nconfigure: error: no iptables\nmake: *** [b] Error 1", "configure: error: no iptables"),
        ("/bin/sh: 1: xmlto: not found\nmake: *** [b] Error 127", "/bin/sh: 1: xmlto: not found"),
        ("Makefile:3: *** too old a kernel.  Stop.", "Makefile:3: *** too old a kernel.  Stop."),
        ("ld: a.o: file not recognized\nmake: *** [b] Error 1", "ld: a.o: file not recognized"),
        ("make: *** No rule to make target 'x'.  Stop.", "make: *** No rule to make target 'x'.  Stop."),
        ("looking...\n! Error: Can not find iptables\n", "! Error: Can not find iptables"),
    ],
)  # fmt: skip
def test_others(log, complaint):
    """Who says most about the cause is heard, whatever make says afterwards."""
    assert complaints(log, ["/build"])[:1] == [complaint]


def test_bounds():
    """Nothing is long: neither a line nor the list; an empty log has no complaints."""
    log = "\n".join(f"a.c:{number}:1: error: {'x' * 5000}" for number in range(5000))
    found = complaints(log, [])
    assert len(found) == 10
    assert max(map(len, found)) == 300
    assert complaints("", []) == []


def test_last_words():
    """Where no line is a complaint, the last one is what there is; our own lines are not meant."""
    assert complaints("# make\nstrange\n\nthe last words\n# make\n", []) == []
    assert last_words("# make\nstrange\n\nthe last words\n# make\n") == "the last words"
    assert last_words("") == ""


def test_what_the_machine_lacks():
    """A library that the kernel's own programs need is not the source's fault."""
    text = (
        "./tools/objtool/objtool: error while loading shared libraries: libelf.so.1: cannot open shared object file"
    )
    assert missing_on_this_machine(text) == "libelf.so.1"
    assert missing_on_this_machine("a.c:1:1: error: x") == ""
