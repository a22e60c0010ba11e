"""A C project of 200 source files, the same one each time: something real for `make` to build.

A library of 196 modules and a program of four files. Each module includes the headers of others and
calls some of them; a few take the compiler long, one makes it warn. The program calls every module
and prints one number for all: it is right only if every object was linked, and none twice.

Standard library only: the benchmarks build it too.
"""

from collections.abc import Iterator
from pathlib import Path

MODULES = 196
FILES = MODULES + 4
WARNS = 7
"""The module for which ``-Wall`` has a warning."""
WARNING = f"unused variable 'spare_{WARNS:03}'"

_SLOW = (40, 90, 140, 190)
_WIDTH = 1 << 64
_CALLS = 3

_MAKEFILE = """\
CFLAGS = -O2 -Wall -Iinclude
MODULES = $(patsubst %.c,%.o,$(wildcard lib/*.c))
PROGRAM = $(patsubst %.c,%.o,$(wildcard src/*.c))
HEADERS = $(wildcard include/*.h)

program: $(PROGRAM) libmodules.a
\t$(CC) $(CFLAGS) -o $@ $^

libmodules.a: $(MODULES)
\t$(AR) rcs $@ $^

%.o: %.c $(HEADERS)
\t$(CC) $(CFLAGS) -c -o $@ $<
"""

_TYPES_H = """\
#ifndef TYPES_H
#define TYPES_H
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t word;

static inline word mix(word value, word by)
{
    value ^= by;
    value *= UINT64_C(6364136223846793005);
    return value ^ (value >> 29);
}
#endif
"""

_MODULE_H = """\
#ifndef MODULE_{number}_H
#define MODULE_{number}_H
#include "types.h"

/* Mix the value with this module's number, and with what the modules that it calls make of it. */
word module_{number}(word value);
#endif
"""

_MODULE_C = """\
{includes}

static const word own[] = {{{own}}};

{more}
static word step(word value, size_t count)
{{
    for (size_t at = 0; at < count; at++)
        value = mix(value, own[at]);
    return value;
}}

word module_{number}(word value)
{{
{warns}    value = step(value, sizeof own / sizeof own[0]);
{calls}    return value;
}}
"""

_PROGRAM = {
    "steps.h": """\
#ifndef STEPS_H
#define STEPS_H
#include "types.h"

extern word (*const modules[])(word);
extern const size_t module_count;

word run_all(word value);
void print_result(const char *name, word value);
#endif
""",
    "run.c": """\
#include "steps.h"

word run_all(word value)
{
    for (size_t at = 0; at < module_count; at++)
        value = modules[at](value);
    return value;
}
""",
    "print.c": """\
#include "steps.h"

void print_result(const char *name, word value)
{
    printf("%s %016" PRIx64 "\\n", name, value);
}
""",
    "main.c": """\
#include "steps.h"

int main(int count, char **arguments)
{
    word start = count > 1 ? strtoull(arguments[1], NULL, 10) : 1;
    print_result("modules", run_all(start));
    return 0;
}
""",
}


def write(folder: Path) -> None:
    """Write the project into ``folder``, which must not exist."""
    for part in ("include", "lib", "src"):
        (folder / part).mkdir(parents=True)
    (folder / "Makefile").write_text(_MAKEFILE)
    (folder / "include" / "types.h").write_text(_TYPES_H)
    for number in range(MODULES):
        named = f"{number:03}"
        (folder / "include" / f"module_{named}.h").write_text(_MODULE_H.format(number=named))
        (folder / "lib" / f"module_{named}.c").write_text(_module(number))
    for name, text in _PROGRAM.items():
        (folder / ("include" if name.endswith(".h") else "src") / name).write_text(text)
    (folder / "src" / "table.c").write_text(_table())


def output(start: int = 1) -> str:
    """Return what the program prints when every module is in it."""
    value = start
    for number in range(MODULES):
        value = _value(number, value)
    return f"modules {value:016x}\n"


def break_module(folder: Path, number: int) -> str:
    """Make a module wrong, so that it does not compile; return the words of gcc's error."""
    source = folder / "lib" / f"module_{number:03}.c"
    words = f"module {number} is broken"
    source.write_text(f"{source.read_text()}#error {words}\n")
    return words


def _calls(number: int) -> Iterator[int]:
    """The modules that a module calls: earlier ones, so that none waits for itself."""
    for apart in range(1, _CALLS + 1):
        # Only into the first ones, which call nobody: else the work would grow as a tree does.
        called = (number * 5 + apart * 3) % 16
        if number >= 16:
            yield called


def _own(number: int) -> list[int]:
    return [(number * 2654435761 + at * 40503 + 12345) % (1 << 32) for at in range(8)]


def _value(number: int, value: int) -> int:
    for by in _own(number):
        value = _mix(value, by)
    for called in _calls(number):
        value = _mix(value, _value(called, value))
    return value


def _mix(value: int, by: int) -> int:
    value = (value ^ by) * 6364136223846793005 % _WIDTH
    return value ^ (value >> 29)


def _module(number: int) -> str:
    called = list(_calls(number))
    headers = ["types", *(f"module_{other:03}" for other in (number, *called))]
    return _MODULE_C.format(
        number=f"{number:03}",
        includes="\n".join(f'#include "{name}.h"' for name in headers),
        own=", ".join(f"UINT64_C({by})" for by in _own(number)),
        more=_slow_functions(number) if number in _SLOW else "",
        warns=f"    int spare_{number:03};\n" if number == WARNS else "",
        calls="".join(f"    value = mix(value, module_{other:03}(value));\n" for other in called),
    )


def _slow_functions(number: int) -> str:
    """Much that the optimiser has to look at."""
    cases = "".join(
        f"    case {case}: value = mix(value + {case}, own[value % 8]); break;\n"
        for case in range(40)
    )
    names = (f"slow_{number:03}_{at}" for at in range(24))
    return "".join(
        f"word {name}(word value);\nword {name}(word value)\n{{\n    switch (value % 40) {{\n"
        f"{cases}    }}\n    return value;\n}}\n"
        for name in names
    )


def _table() -> str:
    names = [f"module_{number:03}" for number in range(MODULES)]
    return "\n".join(
        [
            '#include "steps.h"',
            *(f'#include "{name}.h"' for name in names),
            "",
            "word (*const modules[])(word) = {",
            *(f"    {name}," for name in names),
            "};",
            "const size_t module_count = sizeof modules / sizeof modules[0];",
            "",
        ]
    )
