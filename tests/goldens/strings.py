# SPDX-License-Identifier: Apache-2.0
"""Strings that tokenizers are compared on: seeded, and of every kind that has ever broken one."""

import random

PROSE = (
    "the of and to in is that it for was on with as his they at be this from I have or by one had "
    "not but what all were when we there can an your which their said if do will each about how up "
    "out them then she many some so these would other into has more her two like him see time "
    "could no make than first been its who now people my made over did down only way find use may "
    "tokenization internationalization antidisestablishmentarianism don't I'll we've IT'S o'clock"
)
WORDS = tuple(PROSE.split())
CODE = (
    "def f(x):\n    return x ** 2\n",
    "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\n}\n",
    'print(f"{value!r:>{width}}")',
    "SELECT * FROM t WHERE a <> 'b';",
    '<div class="x">&nbsp;</div>\n<!-- note -->',
    '#!/bin/sh\nset -eu\n\n\nexec "$@" 2>&1 | tee log.txt\n',
    "import numpy as np\n\n\nclass A(B):\n        '''Doc.'''\n",
    '{"key": [1, 2.5e-3, null, true], "other": "\\u00e9"}',
    "\\begin{equation} e^{i\\pi} + 1 = 0 \\end{equation}",
    "x = y if z else w  # why\r\n\r\n",
    "________init________ --verbose=1 ../../a.b/c_d-e.tar.gz",
)
SCRIPTS = (
    "日本語のテキストを分割する",
    "中文没有空格，所以很难",
    "한국어 토큰화 시험",
    "Русский язык очень красив",
    "العربية تُكتب من اليمين إلى اليسار",
    "עברית עם ניקוד שָׁלוֹם",
    "हिन्दी में लिखा हुआ पाठ",
    "ภาษาไทยไม่มีช่องว่าง",
    "Ελληνικά γράμματα ἀρχαία",
    "Tiếng Việt có dấu thanh",
    "Ünïcödé çhàrâctérs ßtraße İstanbul",
    "ﬁ ½ Ⅷ ① ㎏ ｆｕｌｌ ｗｉｄｔｈ",
    "e\u0301 a\u0308o\u0302 \u1112\u1161\u11ab",
)
EMOJI = ("😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪🇯🇵", "❤️", "☃", "𝔘𝔫𝔦", "🤖🚀✨")
SPACES = (
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    " \n ",
    "\u00a0",
    "\u3000",
    "\u2028",
    "        ",
)
ODD = (
    "\u200b",
    "\u200d",
    "\ufeff",
    "\x00",
    "\x07",
    "\x1b[0m",
    "\x7f",
    "\x85",
    "\u2581",
    "\ufffd",
    "\U0010ffff",
)
NUMBERS = (
    "0",
    "7",
    "42",
    "2024",
    "3.14159",
    "1,000,000",
    "1e-10",
    "0xFF",
    "٣٤٥",
    "²³",
    "123456789012345",
)
SIGNS = (*"!?.,;:-+*/=<>()[]{}'\"`~@#$%^&|\\_", "...", "--", "::", "=>", "!=", "''", '"""')
TAGS = (
    "<s>",
    "</s>",
    "<unk>",
    "<pad>",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "[MASK]",
    "[CLS]",
    "<0x0A>",
    "<|",
    "|>",
    "<extra_id_0>",
    "<bos>",
    "<end_of_turn>",
    "##ing",
    "Ġthe",
)


def generate(count: int, seed: int = 0, tags: tuple[str, ...] = ()) -> list[str]:
    """Return strings; `tags` are special tokens' names, mixed in on top of those above."""
    draw = random.Random(seed)
    groups = (WORDS, WORDS, WORDS, CODE, SCRIPTS, EMOJI, SPACES, SPACES, ODD, NUMBERS, SIGNS, TAGS)
    groups += (tags,) if tags else ()

    def part() -> str:
        if draw.random() < 0.08:  # any character at all, but for surrogates
            codes = (
                draw.randrange(draw.choice((0x80, 0x800, 0x10000, 0x110000))) for _ in range(3)
            )
            return "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)
        text = draw.choice(draw.choice(groups))
        change = draw.random()
        if change < 0.05:
            return text.upper()
        if change < 0.1:
            return text.title()
        return text[: draw.randrange(len(text)) + 1] if change < 0.15 else text

    made = []
    for _ in range(count):
        parts = [part() for _ in range(draw.randint(1, 14))]
        made.append(draw.choice(("", " ", " ", " ")).join(parts))
    return made
