//! The colours, few and told apart by every eye (after Okabe and Ito). They are written as they are on paper; where it is
//! dark, the style sheet replaces each of them.

use maud::Render;
use plotters::style::RGBColor;

/// A colour, by its purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ink {
    /// Words that are to be read first.
    Text,
    /// Words and lines beside them.
    Faint,
    /// Hairlines.
    Grid,
    /// The background, and words on a strong colour.
    Surface,
    /// The first curve, and probabilities.
    Blue,
    /// The second curve, bounds, and what went wrong.
    Orange,
    /// The chosen architecture.
    Green,
}

impl Ink {
    #[cfg(test)]
    pub(super) const ALL: [Ink; 7] =
        [Ink::Text, Ink::Faint, Ink::Grid, Ink::Surface, Ink::Blue, Ink::Orange, Ink::Green];

    pub(super) fn rgb(self) -> RGBColor {
        match self {
            Ink::Text => RGBColor(0x1F, 0x23, 0x28),
            Ink::Faint => RGBColor(0x5E, 0x67, 0x70),
            Ink::Grid => RGBColor(0xD8, 0xDD, 0xE2),
            Ink::Surface => RGBColor(0xFE, 0xFE, 0xFE),
            Ink::Blue => RGBColor(0x00, 0x50, 0x8C),
            Ink::Orange => RGBColor(0xC8, 0x50, 0x00),
            Ink::Green => RGBColor(0x00, 0x7F, 0x5C),
        }
    }
}

/// As the value of an attribute, written as plotters writes it.
impl Render for Ink {
    fn render_to(&self, buffer: &mut String) {
        let RGBColor(red, green, blue) = self.rgb();
        *buffer += &format!("#{red:02X}{green:02X}{blue:02X}");
    }
}
