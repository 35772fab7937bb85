"""Draw text of any script: each character by the first font of the machine that has it.

A character that no font has is drawn as Python escapes it, so that nothing is dropped. Text from data is one
line without commands (`shown`).
"""

from functools import cache
from itertools import groupby

from PIL import Image, ImageDraw, ImageFont

from wordsworth.pipeline.errors import shown

# Files of fonts in the order of preference, as Linux, macOS and Windows name them. Pillow finds them by name.
FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "Arial Unicode.ttf",
    "arial.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansArabic-Regular.ttf",
    "NotoSansHebrew-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "wqy-microhei.ttc",
    "PingFang.ttc",
    "msyh.ttc",
)
NO_CHARACTER = "\U0010ffff"  # no font has it: it is drawn as the sign for a missing character
ELLIPSIS = "..."

Font = ImageFont.FreeTypeFont


class Lettering:
    """Measure and draw lines of text of one size.

    Attributes:
        height: pixels from one line to the next.
    """

    def __init__(self, size_px: int):
        """Find the fonts of the machine; there is always the one that Pillow has itself, for Latin.

        Args:
            size_px: size of the letters, pixels.
        """
        self.fonts = _fonts(size_px)
        self.height = round(size_px * 1.3)

    def text(self, text: str) -> str:
        """Return a text from data as one line in which every character can be drawn."""
        return "".join(map(self._drawable, shown(text)))

    def _drawable(self, char: str) -> str:
        if char.isspace() or any(_has(font, char) for font in self.fonts):
            return char
        return char.encode("unicode_escape").decode()

    def width(self, text: str) -> float:
        """Return the width of a line that `text` made, pixels."""
        return sum(font.getlength(part) for font, part in self._parts(text))

    def fitted(self, text: str, width: int, num_lines: int = 1) -> list[str]:
        """Return a text from data in lines that are as wide as allowed; what is too long loses its middle.

        Args:
            text: from data.
            width: of a line, pixels.
            num_lines: lines, at most.
        """
        whole = self.text(text)
        lines = self._wrapped(whole, width)
        if len(lines) <= num_lines:
            return lines
        room = sum(map(len, lines[:num_lines]))
        while len(lines) > num_lines and room > 0:
            room -= 1
            head = (room - len(ELLIPSIS)) // 2
            tail = room - len(ELLIPSIS) - head
            if head <= 0:
                return lines[:num_lines]
            lines = self._wrapped(f"{whole[:head]}{ELLIPSIS}{whole[-tail:]}", width)
        return lines

    def _wrapped(self, text: str, width: int) -> list[str]:
        """Return the text cut where a line is full: keys have no spaces to break at."""
        lines: list[str] = []
        line = ""
        for char in text:
            if line and self.width(line + char) > width:
                lines.append(line)
                line = ""
            line += char
        return [*lines, line] if line or not lines else lines

    def draw(self, draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, colour: str) -> None:
        """Draw a line that `text` or `fitted` made, with its upper left corner at a place."""
        left: float = place[0]
        for font, part in self._parts(text):
            draw.text((left, place[1]), part, fill=colour, font=font)
            left += font.getlength(part)

    def _parts(self, text: str) -> list[tuple[Font, str]]:
        """Return runs of characters with the font that draws them."""
        parts = groupby(text, self._font_of)
        return [(self.fonts[number], "".join(run)) for number, run in parts]

    def _font_of(self, char: str) -> int:
        for number, font in enumerate(self.fonts):
            if _has(font, char):
                return number
        return 0


@cache
def _fonts(size_px: int) -> tuple[Font, ...]:
    found: list[Font] = []
    for name in FONTS:
        try:
            found.append(ImageFont.truetype(name, size_px))
        except OSError:
            continue
    default = ImageFont.load_default(size_px)
    return (*found, default) if isinstance(default, Font) else tuple(found)


@cache
def _has(font: Font, char: str) -> bool:
    """Return whether a font has a character: else it draws the sign for a missing one."""
    if char.isspace():
        return True
    return _drawn(font, char) != _drawn(font, NO_CHARACTER)


@cache
def _drawn(font: Font, char: str) -> tuple[tuple[int, int], bytes]:
    image = Image.new("L", (2 * int(font.size), 2 * int(font.size)))
    ImageDraw.Draw(image).text((0, 0), char, fill=255, font=font)
    return image.size, image.tobytes()
