//! What a guest, and programs of the host's, cannot have more of.

use super::*;

#[test]
fn a_guest_is_held_to_the_room_it_was_promised() {
    let mut guest = Guest::new("credit");
    let (mut program, header) = guest.accept(1, 1 << 20);
    // The program reads nothing: what the kernel's socket does not take waits here, up to what was promised.
    let (mut sent, mut told, piece, mut all) = (0u32, 0u32, pattern(50_000), Vec::<u8>::new());
    loop {
        let left = LARGE_ROOM - (sent - told);
        if left == 0 {
            match guest.try_take(SHORT) {
                Some((news, _)) => {
                    assert_eq!((news.op, news.buf_alloc), (op::CREDIT_UPDATE, LARGE_ROOM));
                    told = news.fwd_cnt;
                    continue;
                }
                None => break,
            }
        }
        let length = piece.len().min(left as usize);
        guest.send(&data(&header, length), &piece[..length]);
        all.extend(&piece[..length]);
        sent += length as u32;
    }
    assert!(sent >= LARGE_ROOM, "{sent}");
    // Asking does not help.
    guest.send(&Header { op: op::CREDIT_REQUEST, ..header }, &[]);
    let answer = guest.expect(op::CREDIT_UPDATE);
    assert_eq!(sent - answer.fwd_cnt, LARGE_ROOM);
    // All of it arrives once it is read, and there is room again.
    let mut got = vec![0; sent as usize];
    program.read_exact(&mut got).unwrap();
    assert!(got == all);
    guest.send(&Header { op: op::CREDIT_REQUEST, ..header }, &[]);
    while guest.expect(op::CREDIT_UPDATE).fwd_cnt != sent {}
    // One byte too many ends it.
    let (mut left, most) = (LARGE_ROOM, pattern(60_000));
    while left > 0 {
        let length = most.len().min(left as usize);
        guest.send(&data(&header, length), &most[..length]);
        left -= length as u32;
    }
    // The news of what went on at once is not heard by this guest.
    let deaf = Header { len: LARGE_ROOM, ..data(&header, 0) };
    guest.send(&deaf, &pattern(LARGE_ROOM as usize));
    while guest.take().0.op != op::RST {}
    guest.wait_for_count("connections", 0);
    guest.stop();
}

#[test]
fn a_host_is_read_only_as_far_as_the_guest_has_room() {
    let mut guest = Guest::new("pressure");
    let (program, mut header) = guest.accept(1, 1000);
    let sent = pattern(600_000);
    let writer = std::thread::Builder::new().name("program".into());
    let writer = writer.spawn({
        let (sent, mut program) = (sent.clone(), program.try_clone().unwrap());
        move || program.write_all(&sent).map(|()| drop(program))
    });
    let writer = writer.unwrap();
    let mut got: Vec<u8> = Vec::new();
    let mut since = 0;
    while got.len() < sent.len() {
        let (packet, bytes) = guest.take();
        match packet.op {
            op::RW => {
                got.extend(&bytes);
                since += bytes.len();
                assert!(since <= header.buf_alloc as usize, "{since} of {}", header.buf_alloc);
            }
            op::CREDIT_REQUEST => {
                assert_eq!(since, header.buf_alloc as usize);
                // It is asked once.
                if got.len() == 1000 {
                    guest.silence();
                }
                header.fwd_cnt = got.len() as u32;
                header.buf_alloc = 1000 + got.len() as u32 / 4;
                since = 0;
                guest.send(&Header { op: op::CREDIT_UPDATE, ..header }, &[]);
            }
            _ => panic!("{packet:?}"),
        }
    }
    assert!(got == sent);
    writer.join().unwrap().unwrap();
    // A guest that has read what was never sent has no room; nor one that says that it has none.
    for (fwd_cnt, buf_alloc) in [(header.fwd_cnt.wrapping_add(1 << 20), 1 << 20), (got.len() as u32, 0)] {
        guest.send(&Header { op: op::CREDIT_UPDATE, fwd_cnt, buf_alloc, ..header }, &[]);
        (&program).write_all(b"x").unwrap();
        guest.expect(op::CREDIT_REQUEST);
        guest.silence();
    }
    guest.stop();
}

#[test]
fn connections_are_counted_and_the_room_of_many_is_small() {
    let mut guest = Guest::new("many");
    let service = guest.service(80);
    let mut streams = Vec::new();
    for port in 0..MAX_CONNECTIONS as u32 {
        guest.send(&request(80, port), &[]);
        let response = guest.expect(op::RESPONSE);
        assert_eq!(response.buf_alloc, if port < MAX_LARGE as u32 { LARGE_ROOM } else { SMALL_ROOM });
        streams.push(service.accept().unwrap().0);
    }
    assert_eq!(guest.count("connections"), 1023);
    guest.send(&request(80, 5000), &[]);
    guest.expect(op::RST);
    // A program of the host's is sent away.
    let mut program = guest.program();
    program.write_all(b"CONNECT 1\n").unwrap();
    assert_eq!(program.read(&mut [0; 1]).unwrap(), 0);
    // Each is its own.
    for (port, stream) in streams.iter_mut().enumerate().step_by(50) {
        let text = port.to_le_bytes();
        guest.send(&data(&request(80, port as u32), text.len()), &text);
        let mut said = [0; 8];
        stream.read_exact(&mut said).unwrap();
        assert_eq!(usize::from_le_bytes(said), port);
    }
    // There is room for as many as leave, large if a large one left.
    for (port, room) in [(0, LARGE_ROOM), (1000, SMALL_ROOM)] {
        guest.send(&Header { op: op::RST, ..request(80, port) }, &[]);
        guest.send(&request(80, port), &[]);
        assert_eq!(guest.expect(op::RESPONSE).buf_alloc, room);
    }
    guest.b.device.reset();
    drop(streams);
    guest.stop();
}

#[test]
fn a_guest_that_takes_nothing_is_not_listened_to() {
    let mut guest = Guest::without_buffers("deaf");
    let mut refused = 0;
    while guest.try_send(&request(80, refused), &[], SHORT) {
        refused += 1;
    }
    assert_eq!(refused as usize, MAX_REPLIES);
    // What waits in the queue is answered with the rest.
    guest.give(0..BUFFERS);
    for port in 0..=refused {
        assert_eq!(guest.expect(op::RST).dst_port, port);
    }
    assert!(guest.b.try_used(TX, PATIENT).is_some());
    guest.stop();
}

#[test]
fn programs_that_say_nothing_are_few_and_do_not_stay() {
    let mut guest = Guest::new("silent");
    let mut silent: Vec<_> = (0..MAX_GREETERS).map(|_| guest.program()).collect();
    guest.wait_for_count("greeters", MAX_GREETERS as u64);
    // One more waits outside until one of them leaves or says what it wants.
    let mut late = guest.program();
    late.write_all(b"CONNECT 5\n").unwrap();
    guest.silence();
    silent.pop();
    assert_eq!(guest.expect(op::REQUEST).dst_port, 5);
    // Nonsense is not listened to.
    let mut rude = silent.pop().unwrap();
    rude.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    assert_eq!(rude.read(&mut [0; 1]).unwrap(), 0);
    // The others are sent away when their time is over, and so is the one that the guest does not answer.
    guest.wait_for_count("greeters", silent.len() as u64);
    let begun = Instant::now();
    for program in &mut silent {
        assert_eq!(program.read(&mut [0; 1]).unwrap(), 0);
    }
    assert!(begun.elapsed() < PATIENCE + Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(late.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(guest.expect(op::RST).dst_port, 5);
    assert_eq!((guest.count("connections"), guest.count("greeters")), (0, 0));
    guest.stop();
}
