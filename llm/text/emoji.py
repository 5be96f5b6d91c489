# SPDX-License-Identifier: Apache-2.0
"""Write emoji as names: 👍🏽 becomes :thumbs_up_sign_medium_skin_tone:.

Names are the Unicode character names that Python knows; a family or profession, which joins several
characters, is one name of all of them.
"""

import functools
import re
import unicodedata

# Characters shown as emoji by themselves (Emoji_Presentation of Unicode's emoji-data.txt, whole
# blocks where nearly all are), and those that are text unless U+FE0F follows.
_ALONE = (
    "\u231a\u231b\u23e9-\u23ec\u23f0\u23f3\u25fd\u25fe\u2614\u2615\u2648-\u2653\u267f\u2693\u26a1"
    "\u26aa\u26ab\u26bd\u26be\u26c4\u26c5\u26ce\u26d4\u26ea\u26f2\u26f3\u26f5\u26fa\u26fd\u2705"
    "\u270a\u270b\u2728\u274c\u274e\u2753-\u2755\u2757\u2795-\u2797\u27b0\u27bf\u2b1b\u2b1c\u2b50"
    "\u2b55\U0001f004\U0001f0cf\U0001f18e\U0001f191-\U0001f19a\U0001f201\U0001f21a\U0001f22f"
    "\U0001f232-\U0001f236\U0001f238-\U0001f23a\U0001f250\U0001f251\U0001f300-\U0001f320"
    "\U0001f32d-\U0001f335\U0001f337-\U0001f37c\U0001f37e-\U0001f393\U0001f3a0-\U0001f3ca"
    "\U0001f3cf-\U0001f3d3\U0001f3e0-\U0001f3f0\U0001f3f4\U0001f3f8-\U0001f43e\U0001f440"
    "\U0001f442-\U0001f4fc\U0001f4ff-\U0001f53d\U0001f54b-\U0001f54e\U0001f550-\U0001f567"
    "\U0001f57a\U0001f595\U0001f596\U0001f5a4\U0001f5fb-\U0001f64f\U0001f680-\U0001f6c5"
    "\U0001f6cc\U0001f6d0-\U0001f6d2\U0001f6d5-\U0001f6d7\U0001f6dc-\U0001f6df\U0001f6eb\U0001f6ec"
    "\U0001f6f4-\U0001f6fc\U0001f7e0-\U0001f7eb\U0001f7f0\U0001f90c-\U0001f93a"
    "\U0001f93c-\U0001f945\U0001f947-\U0001f9ff\U0001fa70-\U0001faff"
)
_AS_TEXT = "\u00a9\u00ae\u203c-\u3299\U0001f170-\U0001f6f3"
_TONES = {
    "\U0001f3fb": "light_skin_tone",
    "\U0001f3fc": "medium_light_skin_tone",
    "\U0001f3fd": "medium_skin_tone",
    "\U0001f3fe": "medium_dark_skin_tone",
    "\U0001f3ff": "dark_skin_tone",
}
_ONE = rf"(?:[{_ALONE}]\ufe0f?|[{_AS_TEXT}]\ufe0f|[{_AS_TEXT}](?=[\U0001f3fb-\U0001f3ff]))"
_TONED = rf"{_ONE}[\U0001f3fb-\U0001f3ff]?"
# In a joined sequence writers often leave out U+FE0F.
EMOJI = re.compile(
    rf"\U0001f3f4[\U000e0061-\U000e007a]+\U000e007f"  # a flag of a region of a country
    rf"|{_TONED}(?:\u200d(?:{_TONED}|[{_AS_TEXT}]))*|[\U0001f1e6-\U0001f1ff]{{2}}"
    r"|[0-9#*]\ufe0f?\u20e3"
)
_FLAG_A, _TAG = 0x1F1E6, 0xE0000


def name(text: str) -> str:
    """Write every emoji of a text as its name between colons; linear in the text's length.

    A blank parts a name from a letter or digit, or another name, beside it.
    """
    if text.isascii():
        return text
    parts, end = [], 0
    for found in EMOJI.finditer(text):
        before = text[end : found.start()]
        if end and not before:
            parts.append(" ")
        parts.append(before)
        if before and before[-1].isalnum():
            parts.append(" ")
        parts.append(f":{_name(found[0])}:")
        end = found.end()
        if text[end : end + 1].isalnum():
            parts.append(" ")
    return "".join((*parts, text[end:])) if end else text


@functools.lru_cache(maxsize=4096)
def _name(emoji: str) -> str:
    first = ord(emoji[0])
    if _FLAG_A <= first < _FLAG_A + 26:
        return "flag_" + "".join(chr(ord("a") + ord(c) - _FLAG_A) for c in emoji)
    if emoji[-1] == "\U000e007f":
        return "flag_" + "".join(chr(ord(c) - _TAG) for c in emoji[1:-1])
    if emoji[-1] == "\u20e3":
        return "keycap_" + {"#": "hash", "*": "asterisk"}.get(emoji[0], emoji[0])
    words = [
        _TONES.get(c, unicodedata.name(c, f"emoji_{ord(c):x}"))
        for c in emoji
        if c not in "\u200d\ufe0f"
    ]
    return re.sub(r"[^a-z0-9]+", "_", "_".join(words).lower()).strip("_")
