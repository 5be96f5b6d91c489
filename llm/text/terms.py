# SPDX-License-Identifier: Apache-2.0
"""English terms of gender, occupation and nationality, and texts with the genders exchanged."""

import re
from typing import NamedTuple

# female, male; each means the other. More than one word for one meaning: the first is written.
PAIRS = (
    ("she", "he"), ("herself", "himself"), ("woman", "man"), ("women", "men"), ("girl", "boy"),
    ("girls", "boys"), ("mother", "father"), ("mothers", "fathers"), ("mom", "dad"),
    ("moms", "dads"), ("mommy", "daddy"), ("mum", "dad"), ("daughter", "son"),
    ("daughters", "sons"), ("sister", "brother"), ("sisters", "brothers"), ("wife", "husband"),
    ("wives", "husbands"), ("aunt", "uncle"), ("aunts", "uncles"), ("niece", "nephew"),
    ("nieces", "nephews"), ("grandmother", "grandfather"), ("grandmothers", "grandfathers"),
    ("grandma", "grandpa"), ("granddaughter", "grandson"), ("girlfriend", "boyfriend"),
    ("girlfriends", "boyfriends"), ("bride", "groom"), ("widow", "widower"), ("lady", "gentleman"),
    ("ladies", "gentlemen"), ("queen", "king"), ("queens", "kings"), ("princess", "prince"),
    ("princesses", "princes"), ("duchess", "duke"), ("goddess", "god"), ("heroine", "hero"),
    ("actress", "actor"), ("actresses", "actors"), ("waitress", "waiter"),
    ("waitresses", "waiters"), ("hostess", "host"), ("stewardess", "steward"),
    ("businesswoman", "businessman"), ("businesswomen", "businessmen"),
    ("policewoman", "policeman"), ("policewomen", "policemen"), ("chairwoman", "chairman"),
    ("congresswoman", "congressman"), ("saleswoman", "salesman"), ("sportswoman", "sportsman"),
    ("female", "male"), ("females", "males"), ("feminine", "masculine"), ("maternal", "paternal"),
    ("motherhood", "fatherhood"), ("sisterhood", "brotherhood"), ("ms", "mr"), ("mrs", "mr"),
    ("madam", "sir"), ("nun", "monk"), ("witch", "wizard"),
)  # fmt: skip
OCCUPATIONS = frozenset((
    "accountant", "actor", "analyst", "architect", "artist", "assistant", "attorney", "author",
    "baker", "banker", "builder", "butcher", "carpenter", "cashier", "chef", "chief", "cleaner",
    "clerk", "coach", "consultant", "cook", "counselor", "dancer", "dentist", "designer",
    "developer", "director", "doctor", "driver", "editor", "electrician", "engineer", "farmer",
    "firefighter", "guard", "hairdresser", "housekeeper", "janitor", "journalist", "judge",
    "laborer", "lawyer", "lecturer", "librarian", "manager", "mechanic", "minister", "model",
    "musician", "nurse", "painter", "pharmacist", "photographer", "physician", "physicist", "pilot",
    "plumber", "police", "politician", "president", "priest", "professor", "programmer",
    "psychologist", "receptionist", "reporter", "researcher", "sailor", "salesperson", "scientist",
    "secretary", "singer", "soldier", "student", "supervisor", "surgeon", "tailor", "teacher",
    "technician", "therapist", "waiter", "worker", "writer",
))  # fmt: skip
NATIONALITIES = frozenset((
    "afghan", "african", "algerian", "american", "arab", "argentinian", "asian", "australian",
    "austrian", "bangladeshi", "belgian", "brazilian", "british", "bulgarian", "canadian",
    "chilean", "chinese", "colombian", "croatian", "cuban", "czech", "danish", "dutch", "egyptian",
    "english", "ethiopian", "european", "filipino", "finnish", "french", "german", "ghanaian",
    "greek", "hungarian", "indian", "indonesian", "iranian", "iraqi", "irish", "israeli", "italian",
    "jamaican", "japanese", "kenyan", "korean", "lebanese", "malaysian", "mexican", "moroccan",
    "nigerian", "norwegian", "pakistani", "palestinian", "peruvian", "polish", "portuguese",
    "romanian", "russian", "scottish", "serbian", "somali", "spanish", "sudanese", "swedish",
    "swiss", "syrian", "thai", "tunisian", "turkish", "ukrainian", "venezuelan", "vietnamese",
    "welsh",
))  # fmt: skip
FEMALE = frozenset(female for female, _ in PAIRS) | {"her", "hers"}
MALE = frozenset(male for _, male in PAIRS) | {"him", "his"}
# Every term as a number: all female words are 1, all male ones 2, the others from `FIRST` on.
FIRST = 3
NAMES = dict(
    enumerate(
        [*(f"occupation/{word}" for word in sorted(OCCUPATIONS - MALE)),
         *(f"nationality/{word}" for word in sorted(NATIONALITIES))],
        FIRST,
    )
)  # fmt: skip
CODES = {name.partition("/")[2]: number for number, name in NAMES.items()}
CODES |= {f"{word}s": number for word, number in CODES.items()}
CODES |= dict.fromkeys(FEMALE, 1) | dict.fromkeys(MALE, 2)

_OTHER: dict[str, str] = {}
for _female, _male in PAIRS:
    _OTHER.setdefault(_female, _male)
    _OTHER.setdefault(_male, _female)
# After "her" as an object ("saw her in …") come words that begin no noun phrase.
_NOT_NOUNS = frozenset((
    "a", "about", "after", "again", "all", "almost", "alone", "already", "also", "although",
    "always", "an", "and", "any", "are", "around", "as", "at", "away", "back", "be", "because",
    "before", "but", "by", "can", "come", "could", "did", "do", "does", "down", "during", "either",
    "enough", "even", "ever", "every", "feel", "for", "from", "get", "go", "had", "has", "have",
    "he", "how", "i", "if", "in", "into", "is", "it", "just", "know", "laugh", "like", "look",
    "may", "might", "more", "much", "never", "not", "now", "of", "off", "on", "once", "or", "out",
    "over", "should", "since", "so", "some", "soon", "still", "than", "that", "the", "then",
    "there", "they", "this", "through", "to", "today", "together", "tomorrow", "tonight", "too",
    "under", "until", "up", "very", "was", "we", "well", "were", "what", "when", "where", "whether",
    "which", "while", "who", "why", "will", "with", "without", "would", "yesterday", "yet", "you",
))  # fmt: skip
_HERE = sorted({*_OTHER, "her", "hers", "him", "his"}, key=lambda word: (-len(word), word))
_TERM = re.compile(rf"(?<![\w'’-])(?:{'|'.join(_HERE)})(?![\w-])", re.IGNORECASE)
_NEXT = re.compile(r"[^\S\n]*([a-z]+)?", re.IGNORECASE)


class Swapped(NamedTuple):
    """A text with genders exchanged, and how many words changed."""

    text: str
    words: int


def code(word: str) -> int:
    """Return the number of a term, 0 for other words."""
    return CODES.get(word.lower(), 0)


def swap_genders(text: str) -> Swapped:
    """Exchange female and male words ("counterfactual data augmentation", Lu et al. 2018).

    "Her" becomes "his" before what can begin a noun phrase, else "him"; "his" becomes "hers" at the
    end of a clause, else "her". Names stay. The writing of a word (upper, title) stays.
    """
    count = 0

    def other(match: re.Match[str]) -> str:
        nonlocal count
        count += 1
        word = match[0].lower()
        following = _NEXT.match(text, match.end())
        after = (following[1] or "").lower() if following else ""
        if word == "her":
            found = "his" if after and after not in _NOT_NOUNS else "him"
        elif word == "his":
            found = "her" if after else "hers"
        elif word in ("him", "hers"):
            found = "her" if word == "him" else "his"
        else:
            found = _OTHER[word]
        if match[0].isupper() and len(match[0]) > 1:
            return found.upper()
        return found.capitalize() if match[0][0].isupper() else found

    return Swapped(_TERM.sub(other, text), count)
