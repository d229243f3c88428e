//! Test images, or some of those that rank architectures, on the device, and means of a task's metrics over all of them.

use tch::{Device, Kind, Tensor};

use super::{Batch, Draw, Task};
use crate::{
    images::{Batches, DataSet, Images, Info, Preprocess},
    torch::read,
};

/// Pixels in one forward pass, and the smallest and the largest number of images that they make. A supernet normalises with the
/// statistics of these images: 250 of CIFAR-10's.
const PIXELS: i64 = 256_000;
const IMAGES: [i64; 2] = [32, 250];
/// The default of [`TestSplit::ranking`].
const RANKING: i64 = 2_000;

/// Metrics by name, in the order of [`Task::test_metrics`].
pub type Metrics = Vec<(&'static str, f64)>;

/// Images on the device that have trained no weights; none for a task that needs none.
pub struct TestSplit {
    images: Images,
    preprocess: Preprocess,
    batch: i64,
}

impl TestSplit {
    /// Takes the first `count` test images, or all of them; of sorted ones `count` at equal distances, so that each class is among
    /// them. Errors with a sentence if there are not so many.
    pub fn new(
        task: &dyn Task,
        data: &DataSet,
        count: Option<i64>,
        device: Device,
    ) -> Result<TestSplit, String> {
        let all = data.test.len();
        let count = count.unwrap_or(all);
        if all > 0 && !(1..=all).contains(&count) {
            return Err(format!("there are {all} test images; {count} of them cannot be used"));
        }
        let images = if data.sorted && count < all {
            let indices: Vec<_> = (0..count).map(|i| i * all / count).collect();
            data.test.select(&indices)
        } else {
            data.test.narrow(0, count)
        };
        Ok(TestSplit::of(task, &data.info, &images, device))
    }

    /// Takes `count` of the images that rank architectures in a search, by default 2,000, or all if there are fewer. They are the
    /// first ones in a random order, always the same: a minibatch of images sorted by class would have the statistics of one class.
    /// Errors with a sentence if there are not so many.
    pub fn ranking(
        task: &dyn Task,
        data: &DataSet,
        count: Option<i64>,
        device: Device,
    ) -> Result<TestSplit, String> {
        let [_, ranking] = data.search_halves();
        let all = ranking.len();
        let count = count.unwrap_or(RANKING.min(all));
        if !(1..=all).contains(&count) {
            return Err(format!(
                "{all} images of data set {} rank architectures; {count} of them cannot be used",
                data.info.name
            ));
        }
        let order = Batches::new(0, all as usize, count as usize);
        let images = ranking.select(order.map_err(|error| error.to_string())?.get(0));
        Ok(TestSplit::of(task, &data.info, &images, device))
    }

    fn of(task: &dyn Task, info: &Info, images: &Images, device: Device) -> TestSplit {
        let [_, height, width] = info.shape;
        TestSplit {
            images: images.to_device(device),
            preprocess: preprocess(task, info, device),
            batch: (PIXELS / (height * width).max(1)).clamp(IMAGES[0], IMAGES[1]),
        }
    }

    /// The number of images.
    pub fn count(&self) -> i64 {
        self.images.len()
    }

    /// The number of forward passes over all of them.
    pub fn batches(&self) -> u64 {
        (self.count() as u64).div_ceil(self.batch as u64).max(1)
    }

    /// A batch for each of [`TestSplit::batches`]. Since a supernet takes statistics over a batch, all are of nearly the same size,
    /// and each has its share of images from everywhere: sorted by class they would be of one class.
    fn batch(&self, task: &dyn Task, number: u64) -> (Images, Batch) {
        let images = self.images.every(number as i64, self.batches() as i64);
        let batch = task.batch(&images, &self.preprocess, Draw::Plain { number });
        (images, batch)
    }

    /// Takes `count` images, all if there are fewer, from the first to the last at equal distances, since neighbours are often of
    /// one scene.
    pub fn sample(&self, task: &dyn Task, count: i64) -> Batch {
        let count = count.min(self.count());
        let one = |i| {
            let start = i * self.count() / count;
            let images = self.images.narrow(start, 1);
            task.batch(&images, &self.preprocess, Draw::Plain { number: start as u64 })
        };
        let batches: Vec<Batch> = (0..count).map(one).collect();
        let together = |part: fn(&Batch) -> &Tensor| {
            Tensor::cat(&batches.iter().map(part).collect::<Vec<_>>(), 0)
        };
        Batch { input: together(|batch| &batch.input), target: together(|batch| &batch.target) }
    }

    /// The metrics of what one gets without a network, if that makes sense.
    pub fn baseline(&self, task: &dyn Task) -> Option<Metrics> {
        let (_, batch) = self.batch(task, 0);
        let _ = task.baseline(&batch)?;
        let forward = |batch: &Batch| task.baseline(batch).expect("it depends on the task alone");
        Some(self.evaluate(task, forward, |_, _, _| {}))
    }

    /// Means over all images of what `forward` makes of them; `seen` is shown each batch with its images and its output.
    pub fn evaluate(
        &self,
        task: &dyn Task,
        forward: impl Fn(&Batch) -> Tensor,
        mut seen: impl FnMut(&Images, &Batch, &Tensor),
    ) -> Metrics {
        let names = task.test_metrics();
        let _guard = tch::no_grad_guard();
        let mut means = vec![0.0; names.len()];
        for number in 0..self.batches() {
            let (images, batch) = self.batch(task, number);
            let output = forward(&batch);
            let metrics = read(&task.test(&output, &batch));
            let part = images.len().max(1) as f64 / self.count().max(1) as f64;
            means.iter_mut().zip(metrics).for_each(|(mean, metric)| *mean += part * metric);
            seen(&images, &batch, &output);
        }
        names.iter().copied().zip(means).collect()
    }
}

/// Prepares the pixels of a data set as a task wants them.
pub fn preprocess(task: &dyn Task, info: &Info, device: Device) -> Preprocess {
    match task.normalised() {
        true => Preprocess::new(info, device, Kind::Float, true),
        false => Preprocess::unit(device, Kind::Float, true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::space::Space;

    #[test]
    fn batches_of_sorted_test_images_have_all_classes() {
        let images = || {
            let labels =
                Tensor::arange(1000, (Kind::Int64, Device::Cpu)).divide_scalar_mode(250, "floor");
            Images { pixels: Tensor::zeros([1000, 1, 1, 1], (Kind::Uint8, Device::Cpu)), labels }
        };
        let data = DataSet { train: images(), test: images(), sorted: true, ..DataSet::empty() };
        let task = Space { name: "toy".into(), ..Space::default() }.task().unwrap();
        let classes = |count| -> Vec<Vec<i64>> {
            let test = TestSplit::new(&*task, &data, count, Device::Cpu).unwrap();
            let labels = |number| test.batch(&*task, number).0.labels;
            (0..test.batches())
                .map(|number| Vec::try_from(&labels(number).bincount::<Tensor>(None, 4)).unwrap())
                .collect()
        };
        let batches = classes(None);
        assert_eq!(batches.len(), 4);
        assert!(batches.iter().flatten().all(|count| (62..=63).contains(count)), "{batches:?}");
        assert_eq!(classes(Some(600)), [[50; 4]; 3]);
        assert_eq!(classes(Some(1)), [[1, 0, 0, 0]]);
    }

    #[test]
    fn ranking_images_are_always_the_same_and_in_no_order_of_classes() {
        let labels = Tensor::arange(100, (Kind::Int64, Device::Cpu));
        let images = || Images {
            pixels: labels.view([-1, 1, 1, 1]).to_kind(Kind::Uint8),
            labels: labels.shallow_clone(),
        };
        let task = Space { name: "toy".into(), ..Space::default() }.task().unwrap();
        let mut data = DataSet { train: images(), test: images(), ..DataSet::empty() };
        for (sorted, ranking) in
            [(true, (1..100).step_by(2).collect::<Vec<_>>()), (false, (50..100).collect())]
        {
            data.sorted = sorted;
            let taken = |count| {
                let split = TestSplit::ranking(&*task, &data, count, Device::Cpu)?;
                Ok::<_, String>(Vec::<i64>::try_from(&split.images.labels).unwrap())
            };
            let mut all = taken(None).unwrap();
            assert_eq!(all, taken(Some(50)).unwrap());
            assert_eq!(taken(Some(7)).unwrap(), all[..7]);
            assert!(!all.is_sorted());
            all.sort_unstable();
            assert_eq!(all, ranking);
            for count in [0, 51] {
                let error = taken(Some(count)).unwrap_err();
                assert!(error.contains(&format!("; {count} of them cannot be used")), "{error}");
            }
        }
    }
}
