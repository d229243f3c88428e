//! One row of a chain in timm's notation, such as `ir_r[1-4]_k[3,5]_s2_e6_c24_se0.25`, with brackets around choices.

use super::super::mbconv::{Activation, BlockKind, Operation};

/// The largest number of channels in a file.
pub(super) const MAX_CHANNELS: i64 = 4096;
/// The largest height and width of a kernel.
pub(super) const MAX_KERNEL: i64 = 11;
/// The largest number of blocks in a row.
const MAX_BLOCKS: i64 = 16;
const MAX_EXPANSION: f64 = 10.0;
/// The largest number of operations of a block, and of widths of a row.
const MAX_CHOICES: usize = 64;

/// A stage: blocks of the same width, of which the first has the stride.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// The smallest and the largest number of blocks; those beyond the smallest may be skipped.
    pub(super) blocks: (i64, i64),
    pub(super) stride: i64,
    /// The choices of each block.
    pub(super) operations: Vec<Operation>,
    /// The choices of the stage's width, as the file has them.
    pub(super) channels: Vec<i64>,
    /// In place of the chain's.
    pub(super) activation: Option<Activation>,
    pub(super) residual: bool,
}

/// The activations of a row, as timm abbreviates them.
const ACTIVATIONS: [(&str, Activation); 4] = [
    ("nre", Activation::Relu),
    ("nr6", Activation::Relu6),
    ("nhs", Activation::HardSwish),
    ("nsw", Activation::Silu),
];

impl Row {
    /// The error quotes the wrong token and names what is allowed.
    pub(super) fn parse(text: &str) -> Result<Row, String> {
        let mut tokens = text.split('_');
        let name = tokens.next().unwrap_or_default();
        let (kind, expands, squeezes) = match name {
            "ir" => (BlockKind::Inverted, true, true),
            "ds" => (BlockKind::Separable, false, true),
            "er" => (BlockKind::Fused, true, true),
            "cn" => (BlockKind::Conv, false, false),
            _ => {
                return Err(format!(
                    "{name:?}: a row starts with ir (inverted residual), ds (depthwise separable), er (fused inverted residual) or \
                     cn (convolution)"
                ));
            }
        };
        let mut fields = Fields::default();
        for token in tokens {
            fields.set(token).map_err(|problem| format!("{token:?}: {problem}"))?;
        }
        let missing = |token| format!("{text:?}: {name} needs {token}");
        let kernels = fields.kernels.ok_or_else(|| missing("a kernel, such as k3 or k[3,5,7]"))?;
        let channels =
            fields.channels.ok_or_else(|| missing("channels, such as c24 or c[24,32]"))?;
        let expansions = match fields.expansions {
            Some(expansions) if expands || expansions == [1.0] => expansions,
            Some(_) => {
                return Err(format!(
                    "{text:?}: {name} does not expand; leave e out, or use ir or er"
                ));
            }
            None if expands => return Err(missing("an expansion, such as e6 or e[3,6]")),
            None => vec![1.0],
        };
        if fields.squeezes.is_some() && !squeezes {
            return Err(format!("{text:?}: {name} has no squeeze-and-excitation; leave se out"));
        }
        let ratios = fields.squeezes.unwrap_or_else(|| vec![0.0]);
        let mut operations = Vec::new();
        for &kernel in &kernels {
            for &expansion in &expansions {
                for &squeeze in &ratios {
                    operations.push(Operation { kind, kernel, expansion, squeeze });
                }
            }
        }
        let choices = operations.len();
        if choices > MAX_CHOICES {
            return Err(format!(
                "{text:?}: a block has at most {MAX_CHOICES} operations, not {choices}"
            ));
        }
        Ok(Row {
            blocks: fields.blocks.unwrap_or((1, 1)),
            stride: fields.stride.unwrap_or(1),
            operations,
            channels,
            activation: fields.activation,
            residual: fields.residual.unwrap_or(kind != BlockKind::Conv),
        })
    }
}

impl Row {
    /// Writes `count` blocks of one operation as a row without choices.
    pub(super) fn notation(
        &self,
        operation: Operation,
        count: usize,
        stride: i64,
        channels: i64,
    ) -> String {
        let Operation { kind, kernel, expansion, squeeze } = operation;
        let (name, expansion) = match kind {
            BlockKind::Inverted => ("ir", format!("_e{expansion}")),
            BlockKind::Fused => ("er", format!("_e{expansion}")),
            BlockKind::Separable => ("ds", String::new()),
            BlockKind::Conv => ("cn", String::new()),
        };
        let mut row = format!("{name}_r{count}_k{kernel}_s{stride}{expansion}_c{channels}");
        if squeeze > 0.0 {
            row += &format!("_se{squeeze}");
        }
        let activation =
            ACTIVATIONS.iter().find(|(_, activation)| self.activation == Some(*activation));
        if let Some((name, _)) = activation {
            row += &format!("_{name}");
        }
        match (kind, self.residual) {
            (BlockKind::Conv, true) => row + "_skip",
            (BlockKind::Conv, false) | (_, true) => row,
            (_, false) => row + "_noskip",
        }
    }
}

/// The values of a row's tokens.
#[derive(Default)]
struct Fields {
    blocks: Option<(i64, i64)>,
    kernels: Option<Vec<i64>>,
    stride: Option<i64>,
    expansions: Option<Vec<f64>>,
    channels: Option<Vec<i64>>,
    squeezes: Option<Vec<f64>>,
    activation: Option<Activation>,
    residual: Option<bool>,
}

impl Fields {
    fn set(&mut self, token: &str) -> Result<(), String> {
        match token {
            "noskip" => return once(&mut self.residual, false),
            "skip" => return once(&mut self.residual, true),
            _ => {}
        }
        if let Some((_, activation)) = ACTIVATIONS.iter().find(|(name, _)| *name == token) {
            return once(&mut self.activation, *activation);
        }
        let letters = token.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(token.len());
        let (key, value) = token.split_at(letters);
        match key {
            "r" => once(&mut self.blocks, range(value)?),
            "k" => {
                let allowed = format!("a kernel is an odd number from 1 to {MAX_KERNEL}");
                let valid = |k: i64| k % 2 == 1 && (1..=MAX_KERNEL).contains(&k);
                once(&mut self.kernels, list(value, whole_number, valid, &allowed)?)
            }
            "s" => match value {
                "1" => once(&mut self.stride, 1),
                "2" => once(&mut self.stride, 2),
                _ => Err("a stride is 1 or 2, and no choice".to_owned()),
            },
            "e" => {
                let allowed = format!("an expansion is a number from 1 to {MAX_EXPANSION}");
                let valid = |e: f64| (1.0..=MAX_EXPANSION).contains(&e);
                once(&mut self.expansions, list(value, decimal, valid, &allowed)?)
            }
            "c" => {
                let allowed = format!("channels are 1 to {MAX_CHANNELS}");
                let valid = |c: i64| (1..=MAX_CHANNELS).contains(&c);
                once(&mut self.channels, list(value, whole_number, valid, &allowed)?)
            }
            "se" => {
                let allowed = "a ratio of squeeze-and-excitation is a number from 0 (none) to 1";
                let valid = |se: f64| (0.0..=1.0).contains(&se);
                once(&mut self.squeezes, list(value, decimal, valid, allowed)?)
            }
            _ => Err("unknown; a row has r (repetitions), k (kernel), s (stride), e (expansion), c (channels), se \
                (squeeze-and-excitation), nre, nr6, nhs, nsw (activation), noskip and skip (residual connection)"
                .to_owned()),
        }
    }
}

fn once<T>(field: &mut Option<T>, value: T) -> Result<(), String> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err("given twice in this row".to_owned()),
    }
}

/// Reads `4`, or `[1-4]`.
fn range(text: &str) -> Result<(i64, i64), String> {
    let bounds = match inside_brackets(text) {
        Some(inside) => {
            inside.split_once('-').map(|(low, high)| (whole_number(low), whole_number(high)))
        }
        None => Some((whole_number(text), whole_number(text))),
    };
    match bounds {
        Some((Some(low), Some(high))) if 1 <= low && low <= high && high <= MAX_BLOCKS => {
            Ok((low, high))
        }
        _ => Err(format!(
            "repetitions are a number from 1 to {MAX_BLOCKS}, or a range such as r[1-4]"
        )),
    }
}

/// Reads `3`, or `[3,5,7]`: numbers that differ.
fn list<T: Copy + PartialEq>(
    text: &str,
    number: impl Fn(&str) -> Option<T>,
    valid: impl Fn(T) -> bool,
    allowed: &str,
) -> Result<Vec<T>, String> {
    let wrong = || format!("{allowed}, or a list of such in brackets: [3,5]");
    let mut numbers = Vec::new();
    for item in inside_brackets(text).unwrap_or(text).split(',') {
        let number = number(item.trim()).filter(|&number| valid(number)).ok_or_else(wrong)?;
        if numbers.contains(&number) {
            return Err(format!("{item} stands twice in this list"));
        }
        numbers.push(number);
        if numbers.len() > MAX_CHOICES {
            return Err(format!("more than {MAX_CHOICES} choices"));
        }
    }
    Ok(numbers)
}

fn inside_brackets(text: &str) -> Option<&str> {
    text.strip_prefix('[')?.strip_suffix(']')
}

fn whole_number(text: &str) -> Option<i64> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

fn decimal(text: &str) -> Option<f64> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(row: &Row) -> Vec<String> {
        row.operations.iter().map(Operation::to_string).collect()
    }

    #[test]
    fn brackets_hold_choices_and_their_product_is_a_block() {
        let row = Row::parse("ir_r[1-4]_k[3,5]_s2_e[3,6]_c[24, 32]_se[0,0.25]_nhs").unwrap();
        assert_eq!(
            (row.blocks, row.stride, row.channels.as_slice()),
            ((1, 4), 2, [24, 32].as_slice())
        );
        assert_eq!(row.activation, Some(Activation::HardSwish));
        assert_eq!(
            names(&row),
            [
                "mbconv_k3_e3",
                "mbconv_k3_e3_se0.25",
                "mbconv_k3_e6",
                "mbconv_k3_e6_se0.25",
                "mbconv_k5_e3",
                "mbconv_k5_e3_se0.25",
                "mbconv_k5_e6",
                "mbconv_k5_e6_se0.25",
            ]
        );
    }

    #[test]
    fn rows_of_timm_are_read_as_they_stand() {
        let one = |text: &str| {
            let row = Row::parse(text).unwrap();
            (names(&row).join(" "), row.residual)
        };
        assert_eq!(one("ds_r1_k3_s1_e1_c16_se0.25"), ("ds_k3_se0.25".into(), true));
        assert_eq!(one("ds_r1_k3_s1_e1_c16_noskip"), ("ds_k3".into(), false));
        assert_eq!(one("ir_r1_k5_s2_e2.3_c40_nre"), ("mbconv_k5_e2.3".into(), true));
        assert_eq!(one("er_r4_k3_s2_e4_c48"), ("fused_k3_e4".into(), true));
        assert_eq!(one("cn_r2_k3_s1_e1_c24_skip"), ("conv_k3".into(), true));
        assert_eq!(one("cn_r1_k1_s1_c960"), ("conv_k1".into(), false));
    }

    #[test]
    fn a_fault_names_the_token_and_what_is_allowed() {
        let cases = [
            ("xx_r1_k3_c8", "xx", "a row starts with ir"),
            ("", "", "a row starts with ir"),
            ("ir_r1_k4_s1_e3_c8", "k4", "odd number from 1 to 11"),
            ("ir_r1_k[3-7]_s1_e3_c8", "k[3-7]", "[3,5]"),
            ("ir_r[0-4]_k3_s1_e3_c8", "r[0-4]", "1 to 16"),
            ("ir_r[1,4]_k3_s1_e3_c8", "r[1,4]", "range such as r[1-4]"),
            ("ir_r1_k3_s[1,2]_e3_c8", "s[1,2]", "1 or 2"),
            ("ir_r1_k3_s1_e11_c8", "e11", "1 to 10"),
            ("ir_r1_k3_s1_enan_c8", "enan", "unknown"),
            ("ir_r1_k3_s1_e3_c0", "c0", "1 to 4096"),
            ("ir_r1_k3_s1_e3_c99999999999999999999", "c99999999999999999999", "1 to 4096"),
            ("ir_r1_k3_s1_e3_c8_se2", "se2", "0 (none) to 1"),
            ("ir_r1_k[3,3]_s1_e3_c8", "k[3,3]", "stands twice"),
            ("ir_r1_k3_k5_s1_e3_c8", "k5", "given twice"),
            ("ir_r1_k3_s1_e3_c8_cc4", "cc4", "unknown"),
            ("ir_r1_k3_s1_c8", "ir_r1_k3_s1_c8", "needs an expansion"),
            ("ds_r1_k3_s1_e3_c8", "ds_r1_k3_s1_e3_c8", "does not expand"),
            ("cn_r1_k3_s1_c8_se0.5", "cn_r1_k3_s1_c8_se0.5", "leave se out"),
            ("ir_r1_s1_e3_c8", "ir_r1_s1_e3_c8", "needs a kernel"),
            (
                "ir_k[1,3,5,7,9,11]_e[1,2,3,4,5,6]_c8_se[0,0.5]",
                "ir_k[1,3,5,7,9,11]_e[1,2,3,4,5,6]_c8_se[0,0.5]",
                "at most 64",
            ),
        ];
        for (text, token, allowed) in cases {
            let problem = Row::parse(text).unwrap_err();
            assert!(problem.starts_with(&format!("{token:?}: ")), "{problem}");
            assert!(problem.contains(allowed), "{problem}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(
            row in "(ir|ds|er|cn)(_[rksecn]{0,2}\\[?[0-9.,-]{0,6}\\]?){0,6}",
            at in 0_usize..40,
            inserted in "\\PC{0,3}",
        ) {
            let mut text: Vec<char> = row.chars().collect();
            let at = at.min(text.len());
            text.splice(at..at, inserted.chars());
            let text: String = text.into_iter().collect();
            if let Err(problem) = Row::parse(&text) {
                prop_assert!(problem.contains(": "), "{problem}");
            }
        }
    }
}
