//! Which of the free places a group's new slots take: near a device, whole units first, spread evenly or packed.
//! Owns the choice; knows nothing of groups' histories.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::{LayoutRequest, Placement, place::Occupancy, units::Places};
use crate::model::{CpuSet, Host, Level, Locality};

/// What is to be chosen.
pub(super) struct Wanted<'a> {
    pub(super) request: &'a LayoutRequest,
    pub(super) places: &'a Places,
    /// How many places.
    pub(super) need: usize,
}

/// Chooses places in one host.
pub(super) struct Chooser<'a> {
    host: &'a Host,
    /// Levels with more than one part, the one with the fewest parts first: in some machines nodes hold packages.
    levels: Vec<Level>,
}

/// How full the parts of each of the chooser's levels are, for one choice.
struct Fill {
    /// Slots of this group per part.
    own: Vec<Vec<u32>>,
    /// CPUs held by other groups per part.
    others: Vec<Vec<u32>>,
}

/// Places of one part, for one step of a choice. Orders by who should get the next slot.
struct Bucket {
    part: usize,
    places: Vec<usize>,
    own: u32,
    others: u32,
}

impl<'a> Chooser<'a> {
    pub(super) fn new(host: &'a Host) -> Self {
        let coarse_first = [Level::Package, Level::Node, Level::Die, Level::L3, Level::L2, Level::Core];
        let mut levels: Vec<Level> = coarse_first.into_iter().filter(|level| host.parts_at(*level).len() > 1).collect();
        levels.sort_by_key(|level| host.parts_at(*level).len());
        Self { host, levels }
    }

    /// Chooses `need` of the `free` places (ascending), given the ones that the group has; ascending.
    pub(super) fn choose(
        &self,
        want: &Wanted<'_>,
        free: &[usize],
        kept: &[usize],
        occupancy: &Occupancy,
    ) -> Vec<usize> {
        if want.need == free.len() {
            return free.to_vec();
        }
        let mut fill = self.fill(want, kept, occupancy);
        let mut chosen: Vec<usize> = Vec::with_capacity(want.need);
        for class in self.classes(want, free, occupancy) {
            let need = want.need - chosen.len();
            if need == 0 {
                break;
            }
            let taken = match want.request.placement {
                _ if class.len() <= need => class,
                Placement::Spread => self.spread(want, &fill, class, need, 0),
                Placement::Pack => self.pack(want, &fill, class, need, 0),
            };
            for place in &taken {
                self.count(want, *place, &mut fill);
            }
            chosen.extend(taken);
        }
        chosen.sort_unstable();
        chosen
    }

    /// The free places, best class first: nearest to the device, whole units, least shared with other groups.
    fn classes(&self, want: &Wanted<'_>, free: &[usize], occupancy: &Occupancy) -> Vec<Vec<usize>> {
        let device = want.request.near.as_deref().and_then(|name| self.host.device(name));
        let mut keyed: Vec<_> = free
            .iter()
            .map(|at| {
                let place = &want.places.list[*at];
                let away = device.map_or((Locality::Same, 0), |device| distance(self.host, &place.cpus, &device.cpus));
                let ranks = place.cpus.iter().filter_map(|cpu| self.host.rank(cpu));
                (away, !place.whole, ranks.map(|rank| occupancy.load(rank)).max(), *at)
            })
            .collect();
        keyed.sort_unstable();
        let classes = keyed.chunk_by(|a, b| (a.0, a.1, a.2) == (b.0, b.1, b.2));
        classes.map(|class| class.iter().map(|entry| entry.3).collect()).collect()
    }

    /// As evenly as possible: each next slot goes to the part that has the fewest of this group's, then the one that
    /// other groups use least, then the first.
    fn spread(&self, want: &Wanted<'_>, fill: &Fill, places: Vec<usize>, need: usize, depth: usize) -> Vec<usize> {
        if places.len() == need || depth == self.levels.len() {
            return places.into_iter().take(need).collect();
        }
        let buckets = self.buckets(want, fill, places, depth);
        let mut shares = vec![0; buckets.len()];
        let next = |at: usize, bucket: &Bucket, own| Reverse((own, bucket.others, bucket.part, at));
        let mut heap: BinaryHeap<_> = buckets.iter().enumerate().map(|(at, b)| next(at, b, b.own)).collect();
        for _ in 0..need {
            let Some(Reverse((own, _, _, at))) = heap.pop() else { break };
            shares[at] += 1;
            if shares[at] < buckets[at].places.len() {
                heap.push(next(at, &buckets[at], own + 1));
            }
        }
        let filled = buckets.into_iter().zip(shares).filter(|(_, share)| *share > 0);
        filled.flat_map(|(bucket, share)| self.spread(want, fill, bucket.places, share, depth + 1)).collect()
    }

    /// In as few parts as possible: into the smallest part that holds all, beside slots of the group where there are
    /// some; where none holds all, the largest parts are filled first.
    fn pack(&self, want: &Wanted<'_>, fill: &Fill, places: Vec<usize>, need: usize, depth: usize) -> Vec<usize> {
        if places.len() == need || depth == self.levels.len() {
            return places.into_iter().take(need).collect();
        }
        let mut buckets = self.buckets(want, fill, places, depth);
        let mut chosen = Vec::with_capacity(need);
        while chosen.len() < need {
            let left = need - chosen.len();
            let fits = |bucket: &Bucket| bucket.places.len() >= left;
            let size = |bucket: &Bucket| bucket.places.len() as i64 * if fits(bucket) { 1 } else { -1 };
            let key = |bucket: &Bucket| {
                (!fits(bucket), Reverse(bucket.own), size(bucket), Reverse(bucket.others), bucket.part)
            };
            let Some(best) = (0..buckets.len()).min_by_key(|at| key(&buckets[*at])) else { break };
            let bucket = buckets.swap_remove(best);
            let share = left.min(bucket.places.len());
            chosen.extend(self.pack(want, fill, bucket.places, share, depth + 1));
        }
        chosen
    }

    fn buckets(&self, want: &Wanted<'_>, fill: &Fill, places: Vec<usize>, depth: usize) -> Vec<Bucket> {
        let mut buckets: Vec<Bucket> = Vec::new();
        let outside = self.host.parts_at(self.levels[depth]).len();
        let mut at_of = vec![usize::MAX; outside + 1];
        for place in places {
            let part = self.part(want, place, depth).unwrap_or(outside);
            if at_of[part] == usize::MAX {
                at_of[part] = buckets.len();
                let (own, others) = (fill.own[depth][part], fill.others[depth][part]);
                buckets.push(Bucket { part, places: Vec::new(), own, others });
            }
            buckets[at_of[part]].places.push(place);
        }
        buckets
    }

    fn part(&self, want: &Wanted<'_>, place: usize, depth: usize) -> Option<usize> {
        self.host.part_of(self.levels[depth], want.places.list[place].cpus.first()?)
    }

    fn fill(&self, want: &Wanted<'_>, kept: &[usize], occupancy: &Occupancy) -> Fill {
        let empty = || self.levels.iter().map(|level| vec![0; self.host.parts_at(*level).len() + 1]).collect();
        let mut fill = Fill { own: empty(), others: empty() };
        for (rank, cpu) in self.host.parts().pus.iter().enumerate().filter(|(rank, _)| occupancy.load(*rank) > 0) {
            for (depth, level) in self.levels.iter().enumerate() {
                if let Some(part) = self.host.part_of(*level, *cpu) {
                    fill.others[depth][part] += occupancy.load(rank);
                }
            }
        }
        for place in kept {
            self.count(want, *place, &mut fill);
        }
        fill
    }

    fn count(&self, want: &Wanted<'_>, place: usize, fill: &mut Fill) {
        for depth in 0..self.levels.len() {
            if let Some(part) = self.part(want, place, depth) {
                fill.own[depth][part] += 1;
            }
        }
    }
}

/// How far a place is from a device: what they share, then the distance between their nodes.
fn distance(host: &Host, place: &CpuSet, device: &CpuSet) -> (Locality, u64) {
    let locality = host.locality(place, device);
    if locality < Locality::Package {
        return (locality, 0);
    }
    let (here, there) = (host.nodes_of(place), host.nodes_of(device));
    let between = |node| host.node(node).into_iter().flat_map(|node| node.distances.iter());
    let reachable = here.iter().flat_map(between).filter(|(node, _)| there.contains(**node));
    (locality, reachable.map(|(_, distance)| *distance).min().unwrap_or(u64::MAX))
}
