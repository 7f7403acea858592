"""2,000 strings to tokenize: by hand, and put together from a fixed seed out of what tokenizers stumble over."""

# ruff: noqa: RUF001 - letters that look alike are the point

from __future__ import annotations

import random

BY_HAND = (
    "",
    " ",
    "a large red house on the left in the snow at night under the stars",
    "  A   Red\tHOUSE\n\n ",
    "a\r\nb\rc\n",
    "don't stop, it's 1234.5! we'll, I'm, you've, they're, she'd",
    "DON'T 'S'S 'LL ’s ‘quoted’ “quotes” … €",
    "naïve café cafe\u0301 CAFÉ Cafe\u0301",
    "ﬁ ½ Ⅷ ² ㎏ ℌ İ I\u0307 ı ẞ ß ǅ ŉ",
    "Ἀθῆναι ὈΔΥΣΣΕΎΣ ΣΊΣΥΦΟΣ ς",
    "日本語の家 房子 집 ひらがな カタカナ ｶﾞ",
    "и дом Й И\u0306",
    "שלום עולם مرحبا بالعالم \u200f\u202eabc\u202c",
    "नमस्ते हिन्दी ไทย ภาษา ខ្មែរ বাংলা",
    "🏠🌲👩‍👩‍👧 👍🏽 🇩🇪 ❤️ ❤ ☺︎ 1️⃣",
    "e\u0301\u0323 e\u0323\u0301 a\u0300\u0301\u0302\u0303 \u0301 z\u0335a\u0336l\u0337g\u0338o",
    "\u0000 nul\u0000in\u0000words",
    "\u0001\u0002\u0007\b\u000b\f\u001b[31m\u007f\u0085\u009f",
    "\ufffd \ufeffbom \u00adsoft\u00adhyphen \u200bzero\u200cwidth\u200d\u2060",
    "a\u00a0b\u2003c\u3000d\u1680e\u2028f\u2029g\u202fh\u205fi\u180ej",
    "&amp; &lt;b&gt; &quot;x&quot; &#39; &#x1F3E0; &nbsp;&amp;amp;",
    "<b>bold</b> <!-- no --> <|startoftext|> <|endoftext|>a<|ENDOFTEXT|> < |endoftext|>",
    "a<|endoftext|>b<|startoftext|>c",
    "x" * 300,
    "antidisestablishmentarianism" * 4,
    "0 1 12 123 1234567890 ١٢٣ ４５ ½ ①",
    "_under_score __ --dash— a-b a_b a.b a,b a/b a\\b",
    "C:\\temp\\x ../../etc/passwd $HOME `id` %s {0} ${x} 'a' \"b\"",
    '{"prompt": ["a", null]}',
    "(word:1.3) [less] \\(escaped\\) BREAK AND <lora:a:1>",
    "!!!??? ... ;;; ::: --- === +++ ~~~ ^^^ ||| \\\\\\",
    "\U0001f9d1\u200d\U0001f3a4 \U00020000\U0002a6df \U000e0041 \U0010ffff \uffff \ue000",
    "𝓈𝒸𝓇𝒾𝓅𝓉 ｗｉｄｅ ⓒⓘⓡⓒⓛⓔ ᵗⁱⁿʸ",
    "ÀÉÎÕÜ àéîõü ÑŒÆØÅ ñœæøå ŁŻ łż",
    "が か\u3099 각 \u1100\u1161\u11a8",
    "Å Å A\u030a Ω Ω K K",
    "red<house>tree red,house,tree red.house red!house",
    "\t\n\v\f\r ",
)
# fmt: off
PIECES = (
    *("house", "Tree", "SNOW", "lighthouse", "a", "I", "the", "of", "red", "blue", "mushroom", "balloon"),
    *("'s", "'T", "'re", "’ll", "'", '"', "n't", "it's", "WE'LL"),
    *(" ", " ", " ", " ", " ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "\u3000", "\u2028", "\u0085", "\x1c"),
    *("\u200b", "0", "7", "42", "2026", "٣", "９", "½", "²", "Ⅷ"),
    *(",", ".", "!", "?", "...", "-", "--", "_", "/", "\\", "(", ")", "[", "]", ":", ";", "#", "@", "&", "%", "|"),
    *("<", ">", "é", "e\u0301", "E\u0301", "ü", "ß", "ẞ", "İ", "ı", "ﬁ", "Σ", "ς", "ΑΣ", "\u0301", "\u0323", "\u0345"),
    *("ñ", "n\u0303", "家", "日本", "の", "カ", "か\u3099", "집", "дом", "Й", "שלום", "مرحبا", "नमस्ते"),
    *("ไทย", "\U00020000", "🏠", "👩‍👧", "👍🏽", "🇩🇪", "❤️", "\ufe0f", "\u200d"),
    *("\0", "\x01", "\x1b", "\x7f", "\ufffd", "\ufeff", "\u00ad", "\u202e", "\u200f", "\ue000", "\U0010ffff"),
    *("&amp;", "&lt;", "&#39;", "&nbsp;", "<b>", "</b>", "<|endoftext|>", "<|startoftext|>", "<|EndOfText|>"),
)
# fmt: on
RANGES = ((0x20, 0x7F), (0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x600), (0x900, 0xE80), (0x1E00, 0x2100))
RANGES += ((0x2100, 0x2800), (0x3000, 0x3200), (0x4E00, 0xA000), (0xAC00, 0xD7A4), (0xF900, 0xFFFE), (0x1F300, 0x1FB00))
COUNT = 2000


def strings() -> list[str]:
    """All of them, in the same order everywhere: ``random`` promises its integers, and nothing else is used."""
    chance = random.Random(77)

    def below(most: int) -> int:
        return int(chance.random() * most)

    found = list(BY_HAND)
    while len(found) < COUNT:
        if len(found) % 4:
            found.append("".join(PIECES[below(len(PIECES))] for _ in range(1 + below(24))))
        else:
            start, stop = RANGES[below(len(RANGES))]
            found.append("".join(chr(start + below(stop - start)) for _ in range(1 + below(16))))
    return found
