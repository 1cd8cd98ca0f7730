//! Random requests, cut into buffers at random, against a model; and random nonsense, against nothing but survival.

use device::fake::random::Random;

use super::*;

/// Cuts `length` bytes at `address` into one to four buffers, anywhere, empty ones included.
fn cut(random: &mut Random, address: u64, length: u32, write: bool) -> Vec<(u64, u32, bool)> {
    let mut at: Vec<u32> = (0..random.below(4)).map(|_| random.below(u64::from(length) + 1) as u32).collect();
    at.extend([0, length]);
    at.sort_unstable();
    at.windows(2).map(|pair| (address + u64::from(pair[0]), pair[1] - pair[0], write)).collect()
}

/// Puts a chain into the ring, through an indirect table now and then.
fn offer(bench: &mut Bench<Disk>, random: &mut Random, head: u16, buffers: &[(u64, u32, bool)]) {
    if random.below(2) == 0 {
        return bench.chain(0, head, buffers);
    }
    let table = FREE + 0x20_0000 + u64::from(head) * 0x400;
    for (n, (address, length, write)) in buffers.iter().enumerate() {
        let next = if n + 1 < buffers.len() { flag::NEXT } else { 0 };
        let flags = next | if *write { flag::WRITE } else { 0 };
        bench.describe_at(
            table,
            n as u16,
            Desc { address: *address, length: *length, flags, next: n as u16 + 1 },
        );
    }
    let length = 16 * buffers.len() as u32;
    bench.describe(0, head, Desc { address: table, length, flags: flag::INDIRECT, next: 0 });
    bench.offer(0, head);
}

#[test]
fn random_requests_match_the_model() {
    for (n, disable_io_uring) in [false, true].into_iter().enumerate() {
        for accept in [ALL, !ring::RING_EVENT_IDX] {
            let mut random = Random(0x5eed_0001 + n as u64 * 77 + (accept & 1));
            let mut model = random.bytes(SECTORS * 512);
            let files = Files::new(&model);
            let mut bench = bench(DiskSpec { disable_io_uring, ..files.spec() }, accept);
            for _ in 0..300 {
                // Eight at once, each on its own part of the disk, so that their order does not matter.
                let mut expect = Vec::new();
                for place in 0..8u16 {
                    let area = FREE + 0x1_0000 * u64::from(place);
                    let (head_at, data_at) = (area, area + 0x1000);
                    let part = SECTORS as u64 / 8;
                    let count = random.below(part / 2);
                    let sector = u64::from(place) * part + random.below(part - count + 1);
                    let bytes = (count * 512) as u32;
                    let span = sector as usize * 512..(sector + count) as usize * 512;
                    let what = [kind::IN, kind::OUT, kind::WRITE_ZEROES][random.below(3) as usize];
                    bench.put(head_at, &header(what, sector));
                    let mut buffers;
                    match what {
                        kind::IN => {
                            // Status and data in buffers that the cut falls through anywhere.
                            buffers = cut(&mut random, head_at, 16, false);
                            buffers.extend(cut(&mut random, data_at, bytes + 1, true));
                            expect.push((place, data_at, model[span].to_vec(), bytes + 1));
                        }
                        kind::OUT => {
                            let data = random.bytes(bytes as usize);
                            bench.put(head_at + 16, &data);
                            model[span].copy_from_slice(&data);
                            buffers = cut(&mut random, head_at, 16 + bytes, false);
                            buffers.push((area + 0xf000, 1, true));
                            expect.push((place, area + 0xf000, vec![], 1));
                        }
                        _ => {
                            bench.put(head_at + 16, &range(sector, count as u32, random.below(2) as u32));
                            model[span].fill(0);
                            buffers = cut(&mut random, head_at, 32, false);
                            buffers.push((area + 0xf000, 1, true));
                            expect.push((place, area + 0xf000, vec![], 1));
                        }
                    }
                    offer(&mut bench, &mut random, place * 16, &buffers);
                    if random.below(3) == 0 {
                        bench.kick(0);
                    }
                }
                bench.kick(0);
                for _ in 0..8 {
                    let (head, used) = bench.used(0);
                    let (_, at, data, want) = &expect[usize::from(head / 16)];
                    assert_eq!(used, *want);
                    assert!(bench.get(*at, data.len()) == *data, "wrong data");
                    assert_eq!(bench.get(at + data.len() as u64, 1), [OK]);
                }
            }
            assert!(!bench.link.broken());
            bench.device.stop_queue(0).unwrap();
            assert!(files.content() == model, "the image differs from the model");
        }
    }
}

/// Descriptors, headers and heads of random bytes: the disk may fail requests or ask for a reset, and must stop when told.
#[test]
fn random_nonsense_is_survived() {
    let files = Files::zeros();
    let mut random = Random(0xbad_5eed);
    for round in 0..150 {
        let spec = DiskSpec { disable_io_uring: round % 3 == 0, readonly: round % 2 == 0, ..files.spec() };
        let mut bench = bench(spec, ALL);
        let size = bench.queues[0].size;
        for index in 0..size {
            let near = FREE + random.below(END - FREE);
            let address = if random.below(8) == 0 { random.bits() } else { near };
            let length = if random.below(8) == 0 { random.bits() as u32 } else { random.below(4096) as u32 };
            let flags = random.below(if round % 2 == 0 { 4 } else { 8 }) as u16;
            let next = random.below(u64::from(size) + 4) as u16;
            bench.describe(0, index, Desc { address, length, flags, next });
            bench.put(near.min(END - 16), &header(random.below(16) as u32, random.below(2 * SECTORS as u64)));
        }
        for _ in 0..random.below(u64::from(size)) {
            let head = random.below(u64::from(size) + 2) as u16;
            bench.offer(0, head);
            if random.below(4) == 0 {
                bench.kick(0);
            }
        }
        bench.kick(0);
        while bench.try_used(0, Duration::from_millis(1)).is_some() {}
        assert!(bench.device.stop_queue(0).is_some());
        bench.device.reset();
    }
}
