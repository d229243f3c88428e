//! The state of the optimiser that must be stored, and its bytes. Knows neither the variables nor whether the
//! numbers make sense together: [`Asng::from_state`](super::Asng::from_state) checks that.

use super::Error;

const VERSION: u32 = 1;

/// Everything that [`Asng::tell`](super::Asng::tell) changes.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// For each free variable, in order: a probability per choice, or an integer's mean and
    /// variance (not its second moment, which would cost digits when the mean is large).
    pub theta: Vec<f64>,
    /// Moving average of the normalised gradient, one number for each free parameter.
    pub s: Vec<f64>,
    /// Weight gathered in `s`, from 0 to 1.
    pub gamma: f64,
    /// Delta, by which `delta_init` is divided to get the length of a step.
    pub snr_factor: f64,
}

impl State {
    /// Writes version and length of theta (`u32`), then gamma, Delta, theta and s (`f64`), all
    /// little-endian. Every bit survives.
    pub fn to_bytes(&self) -> Vec<u8> {
        let State { theta, s, gamma, snr_factor } = self;
        let mut bytes = Vec::with_capacity(8 * (3 + theta.len() + s.len()));
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((theta.len() as u32).to_le_bytes());
        for number in [gamma, snr_factor].into_iter().chain(theta).chain(s) {
            bytes.extend(number.to_le_bytes());
        }
        bytes
    }

    /// Reads what [`State::to_bytes`] of this or an earlier version has written.
    pub fn from_bytes(bytes: &[u8]) -> Result<State, Error> {
        let cut_short = || Error::State("it is cut short".to_owned());
        let (version, body) = bytes.split_first_chunk().ok_or_else(cut_short)?;
        match u32::from_le_bytes(*version) {
            VERSION => from_version_1(body).ok_or_else(cut_short),
            other => Err(Error::State(format!("version {other} is unknown, not {VERSION}"))),
        }
    }
}

fn from_version_1(body: &[u8]) -> Option<State> {
    let (theta_len, body) = body.split_first_chunk()?;
    let (chunks, []) = body.as_chunks() else {
        return None;
    };
    let numbers: Vec<f64> = chunks.iter().copied().map(f64::from_le_bytes).collect();
    let [gamma, snr_factor, ref rest @ ..] = numbers[..] else {
        return None;
    };
    let (theta, s) = rest.split_at_checked(u32::from_le_bytes(*theta_len) as usize)?;
    Some(State { theta: theta.to_vec(), s: s.to_vec(), gamma, snr_factor })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State { theta: vec![0.1, 0.9, -5e-324], s: vec![1.0 / 3.0], gamma: 0.25, snr_factor: 7e77 }
    }

    #[test]
    fn bytes_are_exact() {
        assert_eq!(State::from_bytes(&state().to_bytes()), Ok(state()));
    }

    #[test]
    fn the_layout_of_version_1_never_changes() {
        let state = State { theta: vec![1.0], s: vec![-2.0], gamma: 0.5, snr_factor: 4.0 };
        let mut bytes = vec![1, 0, 0, 0, 1, 0, 0, 0];
        for last_two in [[0xe0, 0x3f], [0x10, 0x40], [0xf0, 0x3f], [0x00, 0xc0]] {
            bytes.extend([0; 6]);
            bytes.extend(last_two);
        }
        assert_eq!(state.to_bytes(), bytes);
    }

    #[test]
    fn damaged_bytes_are_an_error() {
        let mut bytes = state().to_bytes();
        for len in 0..32 {
            assert!(State::from_bytes(&bytes[..len]).is_err(), "{len} bytes");
        }
        for len in 33..40 {
            assert!(State::from_bytes(&bytes[..len]).is_err(), "{len} bytes");
        }
        bytes[0] = 2;
        assert_eq!(
            State::from_bytes(&bytes).unwrap_err().to_string(),
            "invalid state: version 2 is unknown, not 1"
        );
    }
}
