//! The graph of a traced network as an ONNX file, one operation after the other.

mod messages;

use std::collections::HashSet;

use anyhow::{Context, bail, ensure};
use prost::Message;
use serde::Deserialize;
use serde_json::Value;
use tch::Tensor;

use self::messages::{
    Attribute, Dimension, FLOAT, Graph, INT64, Initializer, Model, Node, OperatorSet, Shape,
    TensorType, Type, ValueInfo,
};

/// The version of the operators: of ONNX 1.12, from 2022.
const OPSET: i64 = 17;
/// The version of the format of that release.
const IR_VERSION: i64 = 8;

/// The graph that [`asng_native::trace`] returns.
#[derive(Deserialize)]
struct Trace {
    input: String,
    nodes: Vec<Operation>,
    output: String,
}

/// An operation of libtorch. The arguments are those of its signature in PyTorch's `native_functions.yaml`.
#[derive(Deserialize)]
struct Operation {
    op: String,
    inputs: Vec<Argument>,
    output: String,
    shape: Vec<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Argument {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// Of a weight its name, of another value its number.
    Tensor(String),
    Ints(Vec<i64>),
    Tensors(Vec<String>),
}

/// Writes the graph with these weights. `input` and `output` have a `name` and a `shape`, of numbers and names of sizes. Errors if
/// ONNX has no operation for one of the graph's, or the file would be too large.
pub(super) fn write<'a>(
    trace: &str,
    weights: impl Iterator<Item = &'a (String, Tensor)>,
    input: &Value,
    output: &Value,
) -> anyhow::Result<Vec<u8>> {
    let trace: Trace = serde_json::from_str(trace)?;
    let mut writer = Writer::default();
    for operation in &trace.nodes {
        writer.add(operation)?;
    }
    let Writer { mut node, mut initializer } = writer;
    let [input, output] = [value_info(input)?, value_info(output)?];
    for name in node.iter_mut().flat_map(|node| node.input.iter_mut().chain(&mut node.output)) {
        if *name == trace.input {
            name.clone_from(&input.name);
        } else if *name == trace.output {
            name.clone_from(&output.name);
        }
    }
    let read: HashSet<&String> = node.iter().flat_map(|node| &node.input).collect();
    for (name, weight) in weights.filter(|(name, _)| read.contains(name)) {
        let values = Vec::<f32>::try_from(weight.reshape(-1))?;
        initializer.push(Initializer {
            dims: weight.size(),
            data_type: FLOAT,
            name: name.clone(),
            raw_data: values.into_iter().flat_map(f32::to_le_bytes).collect(),
        });
    }
    let (name, input, output) = ("network".to_owned(), vec![input], vec![output]);
    let model = Model {
        ir_version: IR_VERSION,
        producer_name: env!("CARGO_PKG_NAME").to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: Some(Graph { node, name, initializer, input, output }),
        opset_import: vec![OperatorSet { version: OPSET }],
    };
    ensure!(
        model.encoded_len() <= i32::MAX as usize,
        "ONNX files hold at most 2 GB, and this network has more; leave `onnx` out of --format"
    );
    Ok(model.encode_to_vec())
}

/// Of 32-bit floats.
fn value_info(description: &Value) -> anyhow::Result<ValueInfo> {
    let name = description["name"].as_str().context("a network's input has a name")?.to_owned();
    let dimension = |size: &Value| Dimension {
        value: size.as_i64(),
        param: size.as_str().map(ToOwned::to_owned),
    };
    let dim = description["shape"].as_array().into_iter().flatten().map(dimension).collect();
    let tensor = Some(TensorType { elem_type: FLOAT, shape: Some(Shape { dim }) });
    Ok(ValueInfo { name, kind: Some(Type { tensor }) })
}

fn ints(name: &str, ints: &[i64]) -> Attribute {
    Attribute { name: name.to_owned(), ints: ints.to_vec(), kind: 7, ..Attribute::default() }
}

fn int(name: &str, value: i64) -> Attribute {
    Attribute { name: name.to_owned(), i: Some(value), kind: 2, ..Attribute::default() }
}

fn float(name: &str, value: f64) -> Attribute {
    Attribute { name: name.to_owned(), f: Some(value as f32), kind: 1, ..Attribute::default() }
}

/// As many at the start of each dimension as at its end.
fn pads(padding: &[i64]) -> Attribute {
    ints("pads", &[padding, padding].concat())
}

/// The type of a node, its inputs and its attributes.
type Inputs = (&'static str, Vec<String>, Vec<Attribute>);

#[derive(Default)]
struct Writer {
    node: Vec<Node>,
    /// Constants.
    initializer: Vec<Initializer>,
}

impl Writer {
    /// Adds the nodes of one operation.
    fn add(&mut self, operation: &Operation) -> anyhow::Result<()> {
        use Argument::{Bool, Float, Int, Ints, None, Tensor, Tensors};
        let Operation { op, inputs, output, shape } = operation;
        let (op_type, inputs, attributes) = match (op.as_str(), &inputs[..]) {
            ("add", [Tensor(x), Tensor(y), Int(1)]) => ("Add", names([x, y]), vec![]),
            ("sub", [Tensor(x), Tensor(y), Int(1)]) => ("Sub", names([x, y]), vec![]),
            ("mul", [Tensor(x), Tensor(y)]) => ("Mul", names([x, y]), vec![]),
            ("div", [Tensor(x), Tensor(y)]) => ("Div", names([x, y]), vec![]),
            ("relu", [Tensor(x)]) => ("Relu", names([x]), vec![]),
            ("sigmoid", [Tensor(x)]) => ("Sigmoid", names([x]), vec![]),
            ("hardswish", [Tensor(x)]) => ("HardSwish", names([x]), vec![]),
            ("silu", [Tensor(x)]) => {
                let sigmoid = format!("{output}.sigmoid");
                self.push("Sigmoid", names([x]), &sigmoid, vec![]);
                ("Mul", names([x, &sigmoid]), vec![])
            }
            ("relu6", [Tensor(x)]) => self.clip(x, 0, 6),
            ("clamp", [Tensor(x), Int(low), Int(high)]) => self.clip(x, *low, *high),
            (
                "_convolution",
                [
                    Tensor(x),
                    Tensor(weight),
                    None,
                    Ints(strides),
                    Ints(padding),
                    Ints(dilations),
                    Bool(transposed),
                    Ints(output_padding),
                    Int(groups),
                    ..,
                ],
            ) => {
                let mut attributes = vec![
                    ints("strides", strides),
                    pads(padding),
                    ints("dilations", dilations),
                    int("group", *groups),
                ];
                if *transposed {
                    attributes.push(ints("output_padding", output_padding));
                }
                let op_type = if *transposed { "ConvTranspose" } else { "Conv" };
                (op_type, names([x, weight]), attributes)
            }
            (
                "batch_norm",
                [
                    Tensor(x),
                    Tensor(weight),
                    Tensor(bias),
                    Tensor(mean),
                    Tensor(var),
                    Bool(false),
                    _,
                    Float(epsilon),
                    _,
                ],
            ) => {
                let inputs = names([x, weight, bias, mean, var]);
                ("BatchNormalization", inputs, vec![float("epsilon", *epsilon)])
            }
            ("linear", [Tensor(x), Tensor(weight), Tensor(bias)]) => {
                ("Gemm", names([x, weight, bias]), vec![int("transB", 1)])
            }
            (
                "avg_pool2d",
                [
                    Tensor(x),
                    Ints(kernel),
                    Ints(strides),
                    Ints(padding),
                    Bool(false),
                    Bool(count_padding),
                    None,
                ],
            ) => {
                let attributes = vec![
                    ints("kernel_shape", kernel),
                    ints("strides", strides),
                    pads(padding),
                    int("count_include_pad", i64::from(*count_padding)),
                ];
                ("AveragePool", names([x]), attributes)
            }
            (
                "max_pool2d",
                [
                    Tensor(x),
                    Ints(kernel),
                    Ints(strides),
                    Ints(padding),
                    Ints(dilations),
                    Bool(false),
                ],
            ) => {
                let attributes = vec![
                    ints("kernel_shape", kernel),
                    ints("strides", strides),
                    pads(padding),
                    ints("dilations", dilations),
                ];
                ("MaxPool", names([x]), attributes)
            }
            ("mean", [Tensor(x), Ints(axes), Bool(keep), None]) => {
                let attributes = vec![ints("axes", axes), int("keepdims", i64::from(*keep))];
                ("ReduceMean", names([x]), attributes)
            }
            ("cat", [Tensors(parts), Int(axis)]) => {
                ("Concat", parts.clone(), vec![int("axis", *axis)])
            }
            ("slice", [Tensor(x), Int(axis), Int(start), None, Int(step)]) => {
                self.slice(x, *axis, *start, i64::MAX, *step)
            }
            ("narrow", [Tensor(x), Int(axis), Int(start), Int(length)]) => {
                self.slice(x, *axis, *start, start + length, 1)
            }
            ("constant_pad_nd", [Tensor(x), Ints(padding), Int(0)]) => {
                // libtorch: before and after, from the last dimension on. ONNX: before each dimension, then after each.
                let mut pads = vec![0; 2 * shape.len()];
                for (i, pair) in padding.chunks(2).enumerate() {
                    let dimension = shape.len() - 1 - i;
                    pads[dimension] = pair[0];
                    pads[shape.len() + dimension] = pair[1];
                }
                ("Pad", names([x, &self.ints(&pads)]), vec![])
            }
            ("reshape" | "view", [Tensor(x), Ints(sizes)]) => {
                ("Reshape", names([x, &self.ints(sizes)]), vec![])
            }
            ("permute", [Tensor(x), Ints(order)]) => {
                ("Transpose", names([x]), vec![ints("perm", order)])
            }
            ("transpose", [Tensor(x), Int(first), Int(second)]) => {
                let mut order: Vec<i64> = (0..shape.len() as i64).collect();
                order.swap(*first as usize, *second as usize);
                ("Transpose", names([x]), vec![ints("perm", &order)])
            }
            // Of the layout in memory.
            ("contiguous", [Tensor(x), _]) => ("Identity", names([x]), vec![]),
            ("zeros_like", [Tensor(x), ..]) => {
                let size = format!("{output}.shape");
                self.push("Shape", names([x]), &size, vec![]);
                ("ConstantOfShape", vec![size], vec![])
            }
            ("expand", [Tensor(x), Ints(sizes), _]) => {
                // -1 keeps a size; in ONNX, 1 does.
                let sizes: Vec<i64> = sizes.iter().map(|size| size.abs()).collect();
                ("Expand", names([x, &self.ints(&sizes)]), vec![])
            }
            (_, inputs) => bail!(
                "no operation of ONNX is known for {op} with the arguments {inputs:?}; leave `onnx` out of --format"
            ),
        };
        self.push(op_type, inputs, output, attributes);
        Ok(())
    }

    fn clip(&mut self, x: &String, low: i64, high: i64) -> Inputs {
        let [low, high] = [low, high]
            .map(|bound| self.constant(FLOAT, &[], (bound as f32).to_le_bytes().to_vec()));
        ("Clip", names([x, &low, &high]), vec![])
    }

    /// The part of `x` from `start` to before `end` along an axis.
    fn slice(&mut self, x: &String, axis: i64, start: i64, end: i64, step: i64) -> Inputs {
        let [start, end, axis, step] = [start, end, axis, step].map(|value| self.ints(&[value]));
        ("Slice", names([x, &start, &end, &axis, &step]), vec![])
    }

    fn push(&mut self, op_type: &str, input: Vec<String>, output: &str, attribute: Vec<Attribute>) {
        let (op_type, output) = (op_type.to_owned(), vec![output.to_owned()]);
        self.node.push(Node { input, output, op_type, attribute });
    }

    /// Adds a constant, and returns its name.
    fn constant(&mut self, data_type: i32, dims: &[i64], raw_data: Vec<u8>) -> String {
        let name = format!("constant{}", self.initializer.len());
        let constant = Initializer { dims: dims.to_vec(), data_type, name: name.clone(), raw_data };
        self.initializer.push(constant);
        name
    }

    fn ints(&mut self, values: &[i64]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(INT64, &[values.len() as i64], bytes)
    }
}

fn names<const N: usize>(names: [&String; N]) -> Vec<String> {
    names.map(Clone::clone).to_vec()
}

#[cfg(test)]
mod tests {
    use std::iter;

    use serde_json::json;

    use super::*;

    #[test]
    fn an_operation_that_is_not_known_is_an_error() {
        let write = |ceil: bool| {
            let inputs = json!(["0", [3, 3], [2, 2], [1, 1], [1, 1], ceil]);
            let node =
                json!({"op": "max_pool2d", "inputs": inputs, "output": "1", "shape": [2, 3, 8, 8]});
            let trace = json!({"input": "0", "nodes": [node], "output": "1"}).to_string();
            let value = |name| json!({"name": name, "shape": ["batch", 3, 16, 16]});
            write(&trace, iter::empty(), &value("images"), &value("pooled"))
        };
        assert!(write(false).is_ok());
        let error = write(true).unwrap_err().to_string();
        assert!(
            error.contains("known for max_pool2d with the arguments [Tensor(\"0\"), Ints"),
            "{error}"
        );
        assert!(error.ends_with("Bool(true)]; leave `onnx` out of --format"), "{error}");
    }
}
