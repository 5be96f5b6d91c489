# SPDX-License-Identifier: Apache-2.0
"""Tell the furniture of a web page from its text: calls to act, credits, dates, link lists.

Works on the lines that an extractor returned, with what the page's markup says about titles and
links. The rules name habits of publishing, not sites; a line of running prose is never furniture.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

LONG = 240  # characters; longer lines are prose whatever they begin with
EDGE = 6  # lines at either end of a text in which the weaker signs count
TOKEN = re.compile(r"\w+")

# Lines that are furniture wherever they stand.
CALLS = re.compile(
    r"""^\W*(?:
    (?:advertise?ment|advert|anzeige|werbung|publicit[éey]|publicidad(?:e)?|iklan|annonce|sponsored
      (?:\ (?:content|links?|post))?|promoted(?:\ (?:content|stories))?)\W*$
    | (?:share|tweet|pin|e-?mail|print|save|like|follow|copy\ link|listen\ live|subscribe|sign\ up
      |log\ in|close|menu|search|caption|loading|comments?|leave\ a\ (?:comment|reply)
      |post\ a\ comment|view\ comments?|(?:no|\d+)\ (?:comments?|replies|shares?)
      |get\ short\ url|teilen|drucken|kommentare?|partager|compartir|compartilhar|condividi)\W*$
    | (?:share|tweet|teilen|partager|compartir)\ (?:this|on|via|with|auf|sur|en)\b.{0,60}$
    | sharing\ is\ caring\b.{0,30}$
    | (?:related|see\ also|see\ more|read\ more|read\ also|read\ next|also\ read|read|watch|more
      |must\ read|up\ next|don['’]t\ miss|recommended|popular|trending|more\ from|more\ on
      |lesen\ sie\ auch|mehr\ zum\ thema|à\ lire\ aussi|lire\ aussi|lea\ también|leia\ também
      |leggi\ anche|baca\ juga|читайте\ также)\s*[:»>|].{0,200}$
    | (?:related|recommended|popular|trending|latest|top|more|similar|our\ latest|most\ read
      |most\ popular)\ (?:articles?|stories|posts?|news|content|topics|videos?|reading|links?)\W*$
    | (?:you\ (?:may|might)\ also\ (?:like|enjoy|be\ interested)|don['’]t\ miss
      |continue\ reading|story\ continues\ below|article\ continues\ (?:below|after))\b.{0,60}$
    | (?:sign\ up|subscribe|register|click\ here|join\ our|follow\ us|like\ us
      |get\ the\ (?:latest|day))\b.{0,140}\b(?:news-?letters?|inbox|updates?|facebook|twitter
      |instagram|youtube|telegram|e-?mail|channel|whatsapp|rss|app|alerts?|headlines)\b.{0,80}$
    | (?:follow|like|find)\ .{2,40}\ on\ (?:instagram|facebook|twitter|youtube|tiktok
      |linkedin)\b.{0,80}$
    | have\ a\ (?:news\ )?tip\b.{0,200}$
    | this\ (?:slideshow|site|page|website|form)\ (?:requires|uses|is\ protected)\b.{0,120}$
    | please\ (?:log\ in|sign\ in|enable\ javascript|enter\ a\ valid)\b.{0,120}$
    | (?:enable|turn\ on)\ javascript\b.{0,120}$
    | your\ e-?mail\ address\ will\ not\ be\ published\b.{0,120}$
    | (?:image|photo|picture|slide|figure)\ \d+\ (?:of|/)\ ?/?\ ?\d+\W*$
    )""",
    re.IGNORECASE | re.VERBOSE,
)
# Lines that are furniture at the beginning or the end of a text.
CREDITS = re.compile(
    r"""^\W*(?:
    (?:copyright|all\ rights\ reserved|\(c\)\ ?\d{4})\b.{0,160}$
    | ©.{0,160}$
    | .{0,100}\ball\ rights\ reserved\W*$
    | (?:by|von|par|por)\ [^.!?]{2,80}$
    | (?:first\ )?(?:posted|published|updated|last\ updated|last\ modified|created|veröffentlicht
      |aktualisiert|publié|publicado|actualizado|atualizado)\b[^.!?]{0,20}[\d:].{0,60}$
    | (?:filed\ under|tags?|topics?|categor(?:y|ies)|labels?|posted\ in|tagged|schlagwörter)\b\s*:?
      [^.!?]{0,160}$
    | (?:photo|image|picture|bild|foto|credit|source|via|quelle)s?\ ?(?:credits?|by|courtesy)?
      \ ?[:©].{0,160}$
    | (?:about\ the\ author|author\ bio|written\ by|reporting\ by|editing\ by|disclosure
      |disclaimer)\b.{0,160}$
    | (?:(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?,?\ )?
      (?:\d{1,2}[ ./-])?(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?[ ,./-]+\d{1,4}
      (?:,?\ \d{2,4})?[^.!?]{0,30}$
    | \d{1,4}[./-]\d{1,2}[./-]\d{2,4}[^.!?]{0,30}$
    | \d{1,2}:\d{2}[^.!?]{0,40}$
    | (?:home|start)\ ?[>»/|]\ ?.{0,160}$
    | reading\ time\b.{0,40}$ | \d{1,3}\ min(?:ute)?s?\ read\W*$
    )""",
    re.IGNORECASE | re.VERBOSE,
)
PROSE_END = tuple(".!?…。！？\"'”’»)।؟:;")


class Hints(NamedTuple):
    """What the markup says: normalised headlines and link texts."""

    titles: frozenset[str]
    links: frozenset[str]


def squeeze(text: str) -> str:
    """Reduce a line to its lower-case words, for comparison."""
    return " ".join(TOKEN.findall(text.lower()))


def hints(titles: Iterable[str], links: Iterable[str]) -> Hints:
    """Normalise headlines and link texts; a title "Headline - Site" also counts as "Headline"."""
    heads = set()
    for title in titles:
        heads.add(squeeze(title))
        heads.update(squeeze(part) for part in re.split(r"\s[-–—|:·»]\s", title) if len(part) > 15)
    return Hints(frozenset(heads - {""}), frozenset(s for s in map(squeeze, links) if len(s) > 3))


def strip(lines: list[str], known: Hints) -> list[str]:
    """Return the lines without page furniture.

    Args:
        lines: blocks of an extracted text, in order; empty ones are dropped.
        known: titles and link texts of the page.
    """
    lines = [line for line in lines if line.strip()]
    plain = [squeeze(line) for line in lines]
    kept = [not _furniture(line, words, known) for line, words in zip(lines, plain, strict=True)]
    _trim(lines, plain, kept, known, range(len(lines)), head=True)
    _trim(lines, plain, kept, known, range(len(lines) - 1, -1, -1), head=False)
    return [line for line, keep in zip(lines, kept, strict=True) if keep]


def _furniture(line: str, words: str, known: Hints) -> bool:
    if not words:
        return not any(c.isalnum() for c in line) and len(line) < 12
    return len(line) <= LONG and CALLS.match(line) is not None


def _trim(
    lines: list[str], plain: list[str], kept: list[bool], known: Hints, order: range, *, head: bool
) -> None:
    """Unmark headlines, dates, credits and links at one end, up to the first line of prose."""
    passed = False  # a short line that stays lies between this one and the end
    for step, i in enumerate(order):
        if not kept[i]:
            continue
        line = lines[i].strip()
        weak = len(line) <= LONG and CREDITS.match(line) is not None
        if head:
            weak = weak or plain[i] in known.titles
        else:
            linked = plain[i] in known.links and not line.endswith(PROSE_END)
            # A heading with nothing below it introduced what has been cut.
            bare = len(line) < 50 and not line.endswith(PROSE_END)
            weak = weak or linked or (bare and step > 0 and not passed)
        if not weak and (step >= EDGE or len(line) > 60 or line.endswith(PROSE_END)):
            return
        kept[i] = not weak
        passed = passed or not weak
