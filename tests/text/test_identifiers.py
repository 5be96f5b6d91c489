# SPDX-License-Identifier: Apache-2.0
"""Numbers and keys: injected truth per type, look-alikes, overlaps, pseudonyms, hostile lines."""

import random
import string
import time

import pytest

from llm.errors import ConfigError
from llm.text import identifiers, pii

WORDS = ["the", "harbour", "office", "wrote", "that", "every", "form", "must", "arrive", "before",
         "noon", "12", "of", "the", "40", "boats", "left", "at", "10:45", "for",
         "3.5", "hours"]  # fmt: skip
WRAPS = ("{}", "({})", "{}.", "{},", "<{}>", '"{}"', "[{}]", "{};", "it is {}!", "nr: {}")


def check_digit(digits):
    """Return the Luhn digit, by the definition: double every second digit from the right."""
    doubled = [int(d) * 2 if i % 2 == 0 else int(d) for i, d in enumerate(reversed(digits))]
    return str(-sum(n // 10 + n % 10 for n in doubled) % 10)


def a_card(g, valid=True):
    prefix, length = g.choice([("4", 16), ("51", 16), ("2221", 16), ("37", 15), ("6011", 16),
                               ("3528", 16), ("36", 14)])  # fmt: skip
    body = prefix + "".join(g.choices(string.digits, k=length - len(prefix) - 1))
    last = int(check_digit(body))
    number = body + str(last if valid else (last + g.randrange(1, 10)) % 10)
    sizes = {16: (4, 4, 4, 4), 15: (4, 6, 5), 14: (4, 6, 4)}[length]
    mark = g.choice(["", " ", "-"])
    parts, at = [], 0
    for size in sizes:
        parts.append(number[at : at + size])
        at += size
    return mark.join(parts)


def an_iban(g, valid=True):
    country, length = g.choice([("DE", 22), ("GB", 22), ("FR", 27), ("NL", 18), ("NO", 15),
                                ("MT", 31), ("PL", 28)])  # fmt: skip
    alphabet = string.digits + (string.ascii_uppercase if country in ("GB", "MT", "FR") else "")
    body = "".join(g.choices(alphabet, k=length - 4))
    value = 0
    for char in body + country + "00":
        value = (
            (value * 10 + int(char)) % 97 if char.isdigit() else (value * 100 + ord(char) - 55) % 97
        )
    check = 98 - value
    if not valid:
        check = (check + g.randrange(1, 60)) % 97
    number = f"{country}{check:02d}{body}"
    if g.random() < 0.5:
        number = " ".join(number[i : i + 4] for i in range(0, length, 4))
    return number


def an_ipv4(g):
    return f"{g.choice([8, 23, 52, 91, 172, 192, 203])}.{g.randrange(256)}.{g.randrange(256)}.7"


def an_ipv6(g):
    groups = [f"{g.randrange(1, 65536):x}" for _ in range(8)]
    return g.choice(
        [
            "2001:" + ":".join(groups[1:]),
            f"2001:db8::{groups[0]}",
            f"fe80::{groups[0]}:{groups[1]}:1",
            "2001:0DB8:0000:0000:0000:0000:1428:57ab",
            f"::ffff:{an_ipv4(g)}",
        ]
    )


def an_ssn(g):
    area, group, serial = g.choice([1, 219, 457, 665]), g.randrange(1, 100), g.randrange(1, 9999)
    return f"{area:03d}-{group:02d}-{serial:04d}"


def a_phone(g):
    import phonenumbers

    region = g.choice(["US", "GB", "DE", "FR", "IN", "BR", "JP", "NG", "AU", "CA"])
    kind = g.choice([phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE])
    number = phonenumbers.example_number_for_type(region, kind)
    styles = [phonenumbers.PhoneNumberFormat.INTERNATIONAL, phonenumbers.PhoneNumberFormat.E164]
    if region in ("US", "CA"):
        styles.append(phonenumbers.PhoneNumberFormat.NATIONAL)
    text = phonenumbers.format_number(number, g.choice(styles))
    if region == "GB" and g.random() < 0.5:
        national = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL)
        return "Tel. " + national
    return text


def a_secret(g):
    def some(alphabet, count):
        return "".join(g.choices(alphabet, k=count))

    both = string.ascii_letters + string.digits
    return g.choice(
        [
            "AKIA" + some(string.ascii_uppercase + string.digits, 16),
            "ghp_" + some(both, 36),
            "xoxb-" + some(string.digits, 12) + "-" + some(both, 24),
            "AIza" + some(both, 35),
            "sk_live_" + some(both, 24),
            "sk-proj-" + some(both, 48),
            "hf_" + some(both, 34),
            "glpat-" + some(both, 20),
            "eyJ" + some(both, 30) + ".eyJ" + some(both, 60) + "." + some(both, 43),
            "api_key = " + some(both, 30) + "7a1",
        ]
    )


def an_email(g):
    name = "".join(g.choices(string.ascii_lowercase, k=7))
    return (
        f"{name}.{name[::-1]}{g.randrange(99)}@{name[:4]}.{g.choice(['com', 'org', 'co.uk', 'de'])}"
    )


MAKERS = {"card": a_card, "iban": an_iban, "ipv4": an_ipv4, "ipv6": an_ipv6, "ssn": an_ssn,
          "phone": a_phone, "secret": a_secret, "email": an_email}  # fmt: skip
LOOK_ALIKES = [
    "4111 1111 1111 1112", "1234567890123456", "0000 0000 0000 0000", "1700000000000000",
    "978-3-16-148410-0", "DE89 3704 0044 0532 0130 01", "GB00WEST12345698765432", "AB12 CDEF 3456",
    "256.1.1.1", "1.2.3", "1.2.3.4.5", "version 1.2.3.4", "v10.0.0.1", "127.0.0.1", "0.0.0.0",
    "255.255.255.0", "==4.1.2.3", "std::string", "a::b", "10:45:30", "::", "::1", "dead::beef",
    "aa:bb:cc:dd:ee:ff", "x[1:2]", "000-12-3456", "666-12-3456", "900-12-3456", "123-00-4567",
    "123-45-0000", "2023-10-15", "2010-2015", "1,234,567", "3.14159265358979", "10.1000/182",
    "550e8400-e29b-41d4-a716-446655440000", "da39a3ee5e6b4b0d3255bfef95601890afd80709",
    "token = get_token_from_environment", "password: correcthorsebatterystaple", "sk-learn",
    "secret_key = os.environ['SECRET_KEY_NAME_2']", "+1", "+12 points", "x+1234567", "1/2/2023",
    "(1990) 12-34", "12345678", "$1,200.50", "99-100-101", "eyJ.eyJ.x", "#1234567890",
    "page 415-423", "0.123456789012", "1e-10", "2.5.2024", "12.34.56.78.90", "api_key=YOUR_API_KEY",
]  # fmt: skip


def injected(kind, count=400):
    """Return (text, positions of values, their number) with look-alikes in between."""
    g = random.Random(kind)
    pieces, truth, at = [], [], 0
    for _ in range(count):
        value = MAKERS[kind](g)
        for word in (*g.choices(WORDS, k=6), g.choice(LOOK_ALIKES), *g.choices(WORDS, k=6)):
            pieces.append(word)
            at += len(word) + 1
        wrapped = g.choice(WRAPS).format(value)
        start = at + wrapped.index(value)
        for lead in ("Tel. ", "api_key = "):  # words that announce are no part of the value
            if value.startswith(lead):
                start += len(lead)
                value = value.removeprefix(lead)
        truth.append((start, start + len(value)))
        pieces.append(wrapped)
        at += len(wrapped) + 1
    return " ".join(pieces), truth


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_injected_values_are_found_and_nothing_else(kind):
    text, truth = injected(kind)
    found = [tuple(span) for span in pii.DETECTORS[kind].find(text)]
    right = len(set(found) & set(truth))
    missed = [text[a:b] for a, b in sorted(set(truth) - set(found))[:5]]
    wrong = [text[a:b] for a, b in sorted(set(found) - set(truth))[:5]]
    assert right / len(truth) >= 0.98, (kind, missed, wrong)
    assert right / len(found) >= 0.98, (kind, missed, wrong)


@pytest.mark.parametrize("text", LOOK_ALIKES)
@pytest.mark.parametrize("wrap", ["{}", "see {} there", "({})"])
def test_look_alikes_stay(text, wrap):
    assert pii.redact(wrap.format(text), pii.available()) == (wrap.format(text), {})


def test_wrong_check_digits_are_untouched():
    g = random.Random(1)
    for maker in (a_card, an_iban):
        values = [maker(g, valid=False) for _ in range(500)]
        text = " and ".join(values)
        kind = "card" if maker is a_card else "iban"
        assert pii.redact(text, (kind,)) == (text, {})


def test_luhn_by_its_published_example():
    assert identifiers.luhn("79927398713")
    assert [d for d in range(10) if identifiers.luhn(f"7992739871{d}")] == [3]


def test_private_key_blocks():
    block = "-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----"
    assert pii.redact(f"a\n{block}\nb", ("secret",)) == ("a\n<SECRET>\nb", {"secret": 1})
    cut = block[:40]
    assert pii.redact(cut, ("secret",)) == (cut, {})


def test_overlaps_go_to_the_more_telling_type():
    text, counts = pii.redact("mail 8.8.8.8@example.com card 4111-1111-1111-1111", pii.available())
    assert text == "mail <EMAIL> card <CARD>" and counts == {"email": 1, "card": 1}


def test_pseudonyms_do_not_depend_on_spelling():
    def hide(value, kind):
        return pii.redact(value, (kind,), "pseudonym", 7)[0]

    for kind, one, two in (
        ("card", "4111 1111 1111 1111", "4111111111111111"),
        ("iban", "DE89 3704 0044 0532 0130 00", "DE89370400440532013000"),
        ("ipv6", "2001:db8::1", "2001:0DB8:0:0:0:0:0:1"),
        ("phone", "+1 415-555-2671", "(415) 555-2671"),
    ):
        assert hide(one, kind) == hide(two, kind) != one
        assert hide(one, kind) != pii.redact(one, (kind,), "pseudonym", 8)[0]
    assert hide("8.8.8.8", "ipv4") != hide("8.8.4.4", "ipv4")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(pii, "available", lambda: ("email",))
    with pytest.raises(ConfigError, match="phonenumbers"):
        pii.redact("x", ("phone",))


UNITS = ["1", "1 ", "1-", "1.", "1:", ":", "4111 1111 1111 1111 ", "DE89 3704 0044 0532 0130 00 ",
         "DE89", "1.1.1.1 ", "1.1.1.1.", "fe80::1 ", "a:", "123-45-6789 ", "+1 415 555 2671 ",
         "(415) 555-2671 ", "+1", "(", "tel 020 7946 0958 ", "eyJ", "eyJaaaaaaaaaa.eyJ", "sk-",
         "token=a1", "password=", "-----BEGIN PRIVATE KEY-----", "A", "AKIA", "+4",
         "+49 1 "]  # fmt: skip


def costs(unit, size):
    line = unit * (size // len(unit))
    taken = {}
    for name in pii.available():
        start = time.process_time()
        list(pii.DETECTORS[name].find(line))
        taken[name] = time.process_time() - start
    return taken


@pytest.mark.parametrize("unit", UNITS)
def test_hostile_lines_cost_little(unit):
    assert max(costs(unit, 200_000).values()) < 0.6  # 0.2 s on a free core


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS)
def test_a_hostile_megabyte_costs_under_a_second_each(unit):
    assert max(costs(unit, 1_000_000).values()) < 2.5  # 1 s on a free core
