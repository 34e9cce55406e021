"""Amharic sentences, several thousand characters: plain clauses of our own, put together from words."""

import itertools

_WHO = ("ልጁ", "ልጅቷ", "እናቴ", "አባቴ", "መምህሩ", "ገበሬው", "ነጋዴው", "ሐኪሟ", "ወንድሜ", "እህቴ", "ተማሪዎቹ", "ጓደኛዬ")
_WHEN = ("ዛሬ", "ትናንት", "ነገ ጠዋት", "ባለፈው ሳምንት", "በበጋ ወቅት", "ፀሐይ ስትጠልቅ", "በየቀኑ", "በበዓል ቀን")
_WHERE = ("በቤቱ", "በገበያ", "በትምህርት ቤት", "በወንዙ ዳር", "በተራራው ላይ", "በአዲስ አበባ", "በመንደሩ", "በጫካ ውስጥ", "በሐይቁ አጠገብ")
_WHAT = (
    *("መጽሐፍ አነበበ", "ቡና ጠጣ", "ዳቦ ጋገረ", "ውሃ ቀዳ", "ዘፈን ዘመረ", "ደብዳቤ ጻፈ", "ዛፍ ተከለ", "ፈረስ ጋለበ"),
    *("ጓደኞቹን አገኘ", "አዲስ ቋንቋ ተማረ", "ረጅም መንገድ ተጓዘ", "ስለ ሰላም ተናገረ", "ኮከቦችን ቆጠረ", "ለእንግዶች ምግብ አዘጋጀ"),
)
_ENDS = ("።", "፤ ከዚያም ወደ ቤቱ ተመለሰ።", "፣ ምክንያቱም ደስ ብሎት ነበር።", "፧", "!")


def sentences(count: int) -> list[str]:
    """The first of some thousands of sentences, all different."""
    whole = itertools.product(range(40), range(len(_WHAT)))
    return [
        f"{_WHEN[(i + j) % len(_WHEN)]} {_WHO[(3 * i + j) % len(_WHO)]} {_WHERE[(i + 2 * j) % len(_WHERE)]} {_WHAT[j]}"
        f"{_ENDS[i % len(_ENDS)]}"
        for i, j in itertools.islice(whole, count)
    ]
