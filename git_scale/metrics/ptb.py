"""Words of a caption as the published caption scores count them: the Penn Treebank tokenizer, without Java.

    "A dog's red-and-white ball (2 lbs.) isn't $5.00!"
    a dog 's red-and-white ball -lrb- 2 lbs -rrb- is n't $ 5.00

The truth is what pycocoevalcap's PTBTokenizer makes of a caption: Stanford CoreNLP 3.4.1 with -preserveLines and
-lowerCase, then without a list of punctuation. The rules here were found by asking that program; the tests hold
them against its answers. As there, brackets stay (as -lrb-), because the list names them in upper case.

At each place all rules are tried and the longest match wins, its context included; of equals the first. Known to
differ: doubled curly quotes, which stay there as a token, and rare file names such as "5.x", which stay whole there.
"""

from __future__ import annotations

import re

# What is left out: the published list, and the signs that the treebank spells as one of it.
_PUNCTUATION = frozenset(
    "'`.?!,:;-\"\u2018\u2019\u201b\u2039\u203a\u201c\u201d\u00ab\u00bb\u2012\u2013\u2014\u2015\u2026"
)
_PUNCTUATION |= {"--", "---", "----", "...", "....", ".....", "''"}
_SPELLED = {"\u00a3": "#", "\u20ac": "$", "\u00a4": "$", "\u00a2": "cents", "&lt;": "<", "&gt;": ">"}
_SPELLED |= {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SPELLED |= {"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
_ENTITIES = {"&amp;": "&", "&apos;": "'", "&quot;": '"', "&nbsp;": " ", "&mdash;": "--"}

# Abbreviations keep their period; every word of up to five letters was tried, and the usual longer ones.
_ABBREVIATIONS = """
    adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bancorp bhd bldg blvd brig bros calif capt
    cf cie cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri
    ft ga gen gov govs hon inc ind insp intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md messrs mfg
    mich minn mlle mme mo mon mont mr mrs ms msgr mt mtg natl neb nev nov oct okla penn pfc ph plc ppte pptes ppty
    pptys pres prof profs pte ptes pty ptys pvt rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste
    supt supts sys tel tenn thu thurs treas tue tues univ va vs vt wed wis wisc wm wyo"""
_CAPITAL_ABBREVIATIONS = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"  # in lower case they are words
_BEFORE_NUMBERS = "art ca fig figs no nos op pp prop"  # "no. 5", but "he said no."
# After a single letter and its period these begin a new sentence: "plan B. The dog", but "J. Smith".
_STARTERS = """
    A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Now Once
    One Other Our She Since So Some Such That The Their Then There These They This We What When While Yet
    You"""


def _any(words: str) -> str:
    return "(?:" + "|".join(words.split()) + ")"


# Case matters here: 212A, the kelvin sign, is a k of another case.
_NUMERALS = "\\d\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u218f\u2460-\u24ff"
_L = f"(?-i:[^\\W_{_NUMERALS}]|[\u02b0-\u036f])"  # a letter
_A = f"(?:{_L}|[0-9])"
_Q = "['\u2019]"
_WORD = f"{_L}{_A}*(?:[.!?]{_L}{_A}*)*"  # "dog.The" without a blank stays one word
_ENDING = f"{_Q}(?:[smd]|re|ve|ll)(?!{_L})"
_INITIALS = "[a-z](?:\\.[a-z])*\\."
_HYPHEN = "[-_\u2010\u2011]"
_SLASHED = f"{_A}+(?:-[A-Za-z]+){{0,2}}"
_HOST = "[a-z0-9]+"
_IN_URL = '[^\\s"<>|(){}]'
_PATH = f'(?:/{_IN_URL}*[^\\s"<>|.!?(){{}},-])?'

# Group 1 is the token, what stands behind it in a rule is context; a rule without a group is the token.
_RULES = [
    # words that are two
    "(can)not\\b",
    "(gon|wan)na\\b",
    "(got)ta\\b",
    "(gim|lem)me\\b",
    "('t)(?:is|was)",
    # contractions
    f"({_L}{_A}*?)n[`'\u2019\u201b]t",
    "n[`'\u2019\u201b]t",
    f"({_WORD}){_ENDING}",
    _ENDING,
    f"(y{_Q}){_L}{{2}}",
    f"{_Q}n{_Q}",
    f"{_Q}(?:n|em|cause|till?)(?!{_L})",
    f"{_Q}(?:[2-9]0s|[0-9]{{2}}(?=\\s|$))",
    f"(?:[dlj]|ol|somethin|dunkin){_Q}",
    "''",
    # numbers, dates, telephones
    "[-+]?(?:[0-9]*(?:[.,:][0-9]+)+|[0-9]+)",
    "(?:[0-9]{1,4}[- \u00a0])?[0-9]{1,4}/[0-9]{1,4}",
    "(?:\\([0-9]{3}\\) ?|[0-9]{3} )[0-9]{3}[- ][0-9]{4}",
    # abbreviations
    f"({_L})\\.\\s+(?-i:{_any(_STARTERS)})(?=\\s|$)",
    f"{_INITIALS}(?:-(?:{_INITIALS}|{_A}+))*",
    "(?:Ph|Ed)\\.D\\.",
    f"{_any(_ABBREVIATIONS)}\\.(?:-{_A}+)*",
    f"(?-i:{_any(_CAPITAL_ABBREVIATIONS)})\\.",
    f"({_any(_BEFORE_NUMBERS)}\\.)\\s?[0-9]",
    f"({_A}+\\.)[,;:]",
    # words
    _WORD,
    f"(?:{_WORD}|[0-9]+(?:[.,][0-9]+)+(?=-)|{_A}+)(?:{_HYPHEN}{_A}+)*",
    f"(?:{_A}+-)*(?:[dlno]|(?-i:[A-HJ-XZ])){_Q}{_L}{{2}}{_A}*(?:-{_A}+)*",
    f"{_L}+[aeiou]{_Q}[aeiou]{_L}+",
    f"(?:li{_Q}l|c{_Q}mon|c{_Q}est|s{_Q}mores|e{_Q}er)",
    f"{_SLASHED}(?:/{_SLASHED}){{1,2}}",
    "(?-i:[A-Z]+(?:&[A-Z]+)+)",
    "c\\+\\+|[cf]#",
    # what the web writes
    f'https?://{_IN_URL}*[^\\s"<>|.!?(){{}},-]',
    f"www\\.(?:[a-z0-9-]+\\.)+[a-z]{{2,4}}{_PATH}",
    f"(?:{_HOST}\\.)+(?:com|net|org|edu){_PATH}",
    f'<?[a-z0-9]{_IN_URL}*@{_IN_URL}*[^\\s"<>|.(){{}}]>?',
    "@[a-z_][a-z_0-9]*",
    f"#{_L}+",
    "</?[a-z!?][\\w.:-]*(?:\\s+[a-z][\\w.:-]*(?:=(?:\"[^\"]*\"|'[^']*'))?)*\\s*/?>",
    f"[<>]?[:;=][-'o*]?[)(dpo\\\\|\\]\\[{{}}@](?!{_L})",
    "[-^=~<>]_[-^=~<>]",
    # runs of one sign
    "-{2,4}",
    "-{5,}",
    "[!?]+",
    "\\.{3,5}",
    "[*]+|[#]+|_+|@+",
    "<<|>>",
    "(?-i:[A-Z]*\\$)",
    "&(?:[lg]t|#[0-9]+);",
    "-[lr][rcs]b-",
    "[^\\s]",
]
_COMPILED = [re.compile(rule, re.IGNORECASE) for rule in _RULES]
_PLAIN = re.compile(r"[a-z]+(?= |\Z)")  # the bulk of all captions, without trying every rule
_CONTRACTION = re.compile(f"n[`'\u2019\u201b]t|{_ENDING}", re.IGNORECASE)
_SPLIT = frozenset(["cannot", "gonna", "wanna", "gotta", "gimme", "lemme"])
# Signs that the Java program knows; it drops all others (emoji, private use) without a trace.
_SIGN = re.compile(
    "[!-~\u00a1-\u00ff\u0600-\u0dff\u2013-\u2044\u2070-\u20ac\u2100-\u2bff\u3001\u3002\uff01-\uff65]"
)


def tokenize(caption: str) -> list[str]:
    """The caption's tokens in lower case, without punctuation; none for an empty text.

    A caption is taken by itself. The Java program reads all captions as one text: for it the first word of the next
    caption decides whether "plan B." or "no." at a caption's end keeps its period.
    """
    text = caption.replace("\u00ad", "")
    for entity, sign in _ENTITIES.items():
        text = text.replace(entity, sign)
    tokens = (_normalize(token) for token in _split(text))
    return [token for token in tokens if token and token not in _PUNCTUATION]


def _split(text: str) -> list[str]:
    tokens, at = [], 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        plain = _PLAIN.match(text, at)
        end = plain.end() if plain and plain[0] not in _SPLIT else _longest(text, at)
        tokens.append(text[at:end])
        at = end
    return tokens


def _longest(text: str, at: int) -> int:
    """Where the token that begins at `at` ends."""
    found = filter(None, (rule.match(text, at) for rule in _COMPILED))
    best = max(found, key=lambda match: match.end())  # the first of equals
    return best.end(best.lastindex or 0)


def _normalize(token: str) -> str:
    """As the treebank spells it; empty for a sign that is dropped."""
    if token in _SPELLED:
        return _SPELLED[token]
    if len(token) == 1 and not token.isalnum() and not _SIGN.match(token):
        return ""
    if _CONTRACTION.fullmatch(token):
        token = token.translate({0x2019: "'", 0x201B: "`"})
    return token.lower().replace(" ", "\u00a0").replace("(", "-lrb-").replace(")", "-rrb-")
