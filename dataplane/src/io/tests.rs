//! Both drivers against real sockets: what one does, the other does.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::pin::pin;
use std::rc::Rc;
use std::sync::mpsc;
use std::task::Poll;

use super::*;
use crate::sys::event;

/// Runs the same story on each driver.
fn on_each_driver(story: impl AsyncFn()) {
    for mode in [Mode::IoUring, Mode::Epoll] {
        let before = buffers_out();
        run(mode, story()).unwrap();
        assert_eq!(buffers_out(), before, "every buffer has come back from {}", mode.as_str());
    }
}

/// A connection: our end, and the peer's as a plain blocking socket.
fn connection() -> (Stream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    ours.set_nonblocking(true).unwrap();
    (Stream::adopt(ours.into()).unwrap(), peer)
}

fn buf_of(bytes: &[u8]) -> Buf {
    let mut buf = Buf::of(bytes.len());
    assert!(buf.append(bytes));
    buf
}

async fn send_all(stream: &Stream, bytes: &[u8], told: Told) {
    let mut buf = buf_of(bytes);
    while !buf.is_empty() {
        let (sent, left) = stream.send(buf, told).await;
        sent.unwrap();
        buf = left;
    }
}

/// Receives until the end.
async fn recv_all(stream: &Stream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(buf) = stream.recv().await.unwrap() {
        all.extend_from_slice(buf.bytes());
    }
    all
}

/// Polls a future once and lets it go.
async fn once<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Runs beside a story what the clock drives.
fn start_clock() {
    spawn(async { keep_time(|_| {}).await.unwrap() });
}

#[test]
fn receives_in_order_and_tells_the_end_again_and_again() {
    on_each_driver(async || {
        let (stream, mut peer) = connection();
        peer.write_all(b"one").unwrap();
        assert_eq!(stream.recv().await.unwrap().unwrap().bytes(), b"one");
        let sent: Vec<u8> = (0..400_000u32).map(|number| number as u8).collect();
        let copy = sent.clone();
        let writer = std::thread::spawn(move || peer.write_all(&copy));
        assert_eq!(recv_all(&stream).await, sent);
        assert!(stream.recv().await.unwrap().is_none());
        assert_eq!(stream.input().await, Input::Ended);
        writer.join().unwrap().unwrap();
    });
}

#[test]
fn large_buffers_take_over_in_the_middle_without_losing_a_byte() {
    on_each_driver(async || {
        let (stream, mut peer) = connection();
        let sent: Vec<u8> = (0..3_000_000u32).map(|number| (number >> 3) as u8).collect();
        let copy = sent.clone();
        let writer = std::thread::spawn(move || peer.write_all(&copy));
        let mut all = Vec::new();
        let mut largest = 0;
        while let Some(buf) = match all.len() {
            1_000_000..2_000_000 => stream.recv_bulk().await.unwrap(),
            _ => stream.recv().await.unwrap(),
        } {
            largest = largest.max(buf.len());
            all.extend_from_slice(buf.bytes());
        }
        assert!(all == sent, "{} of {} bytes, or others", all.len(), sent.len());
        assert!(largest > 8 * 1024, "no large buffer was used: the largest had {largest} bytes");
        writer.join().unwrap().unwrap();
    });
}

#[test]
fn what_has_no_room_behind_a_partial_head_comes_with_the_next_receive() {
    on_each_driver(async || {
        let (stream, mut peer) = connection();
        let mut partial = Buf::of(4);
        partial.append(b"GE");
        peer.write_all(b"T / HTTP/1.1").unwrap();
        let mut filled = partial;
        assert!(stream.recv_behind(&mut filled).await.unwrap());
        assert_eq!(filled.bytes(), b"GET ");
        assert_eq!(stream.input().await, Input::Bytes);
        assert_eq!(stream.recv().await.unwrap().unwrap().bytes(), b"/ HTTP/1.1");
    });
}

#[test]
fn looking_at_the_input_takes_nothing() {
    on_each_driver(async || {
        let (stream, mut peer) = connection();
        assert!(once(stream.input()).await.is_none());
        peer.write_all(b"x").unwrap();
        assert_eq!(stream.input().await, Input::Bytes);
        assert_eq!(stream.input().await, Input::Bytes);
        assert_eq!(stream.recv().await.unwrap().unwrap().bytes(), b"x");
        assert!(once(stream.input()).await.is_none());
    });
}

#[test]
fn a_hangup_behind_unread_bytes_is_noticed() {
    on_each_driver(async || {
        // One read, which a ring has received already; and many, behind which it does not receive any more.
        for reads in [1, 20] {
            let (stream, mut peer) = connection();
            for _ in 0..reads {
                peer.write_all(b"unread").unwrap();
                let _ = once(stream.input()).await;
                turn().await;
            }
            let mut hangup = pin!(std::future::poll_fn(|context| stream.poll_hangup(context)));
            assert!(once(hangup.as_mut()).await.is_none());
            peer.shutdown(Shutdown::Write).unwrap();
            hangup.await;
        }
    });
}

#[test]
fn a_slow_reader_is_waited_for_and_a_send_that_nobody_waits_for_disturbs_no_later_one() {
    for told in [Told::AtOnce, Told::WithNext] {
        on_each_driver(async || slow_reader(told).await);
    }
}

async fn slow_reader(told: Told) {
    start_clock();
    let (stream, mut peer) = connection();
    let filler = vec![b'f'; 64 * 1024];
    let mut filled = 0;
    // The kernel's buffers fill up, until a send stays under way; which is then given up.
    while let Some((sent, _)) = once_settled(stream.send(buf_of(&filler), told)).await {
        filled += sent.unwrap();
    }
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        peer.read_to_end(&mut all).map(|_| all)
    });
    send_all(&stream, b"the end", told).await;
    stream.shutdown_write();
    assert_eq!(stream.input().await, Input::Ended);
    let all = reader.join().unwrap().unwrap();
    assert!(all.ends_with(b"the end") && all.len() >= filled + 7);
    assert!(all[..all.len() - 7].iter().all(|byte| *byte == b'f'));
}

#[test]
fn a_send_may_be_told_of_with_the_next_thing_that_happens() {
    on_each_driver(async || {
        let (stream, mut peer) = connection();
        let echo = std::thread::spawn(move || {
            for _ in 0..1000 {
                let mut bytes = [0; 5];
                peer.read_exact(&mut bytes).unwrap();
                peer.write_all(&bytes).unwrap();
            }
        });
        // Without a clock: it is the echo that tells of the send.
        for round in 0..1000u32 {
            let word = format!("{round:05}");
            let mut receive = pin!(stream.recv());
            assert!(once(receive.as_mut()).await.is_none(), "nothing comes before it is asked for");
            assert_eq!(stream.send(buf_of(word.as_bytes()), Told::WithNext).await.0.unwrap(), 5);
            assert_eq!(receive.await.unwrap().unwrap().bytes(), word.as_bytes());
        }
        blocking(move || echo.join().unwrap()).await;
        start_clock();
        let (stream, _peer) = connection();
        let (sent, _) = stream.send(buf_of(b"into silence"), Told::WithNext).await;
        assert_eq!(sent.unwrap(), 12, "the next tick tells of it");
    });
}

/// Also on a kernel where a send that nothing is told of may not have ended well.
#[test]
fn where_silence_does_not_mean_success_every_send_is_told_of() {
    let before = buffers_out();
    let ring = ring::Ring::new().unwrap().without_silence();
    let story = async {
        let (stream, mut peer) = connection();
        // No clock and no other socket: nothing but its own completion can end a send.
        for _ in 0..100 {
            assert_eq!(stream.send(buf_of(b"small"), Told::WithNext).await.0.unwrap(), 5);
        }
        let sent: Vec<u8> = (0..3_000_000u32).map(|number| (number >> 3) as u8).collect();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            peer.read_to_end(&mut all).map(|_| all)
        });
        send_all(&stream, &sent, Told::WithNext).await;
        stream.shutdown_write();
        let all = blocking(move || reader.join().unwrap()).await.unwrap();
        assert!(all[500..] == sent && all[..500].chunks(5).all(|word| word == b"small"));
        slow_reader(Told::WithNext).await;
    };
    runtime::run_on(ring, story).unwrap();
    assert_eq!(buffers_out(), before);
}

#[test]
fn a_close_does_not_wait_for_what_would_have_been_told_later() {
    on_each_driver(async || {
        for _ in 0..100 {
            let (stream, mut peer) = connection();
            let event = event::event().unwrap();
            let signal = event.try_clone().unwrap();
            let reader = std::thread::spawn(move || {
                let mut all = Vec::new();
                peer.read_to_end(&mut all).unwrap();
                event::signal(&signal);
                all
            });
            let _ = once(stream.send(buf_of(b"goodbye"), Told::WithNext)).await;
            drop(stream);
            // Nothing else happens on this worker before the peer has seen the end.
            Stream::adopt(event).unwrap().readable().await.unwrap();
            assert_eq!(reader.join().unwrap(), b"goodbye");
        }
    });
}

#[test]
fn a_reset_is_an_error_and_a_dropped_stream_closes() {
    on_each_driver(async || {
        let (stream, peer) = connection();
        crate::sys::socket::reset_on_close(&peer);
        drop(peer);
        assert!(stream.recv().await.is_err());
        let (stream, mut peer) = connection();
        assert!(once(stream.input()).await.is_none(), "a receive is under way when it is dropped");
        let reader = std::thread::spawn(move || peer.read(&mut [0; 1]));
        drop(stream);
        let ended = blocking(move || reader.join()).await;
        assert_eq!(ended.unwrap().unwrap(), 0);
    });
}

#[test]
fn a_lease_is_redeemed_at_home_unless_the_peer_has_moved() {
    on_each_driver(async || {
        let (stream, mut peer) = connection();
        let stream = stream.lease().and_then(Lease::redeem).expect("nothing has happened to it");
        peer.write_all(b"unasked").unwrap();
        assert_eq!(stream.input().await, Input::Bytes);
        assert!(stream.lease().is_none());
        let (stream, peer) = connection();
        let lease = stream.lease().unwrap();
        drop(peer);
        while lease.is_quiet() {
            turn().await;
        }
        assert!(lease.redeem().is_none());
    });
}

#[test]
fn another_worker_claims_a_lease_and_goes_on_with_the_connection() {
    for [home, other] in [[Mode::IoUring, Mode::IoUring], [Mode::Epoll, Mode::Epoll]] {
        let (leases, leased) = mpsc::channel();
        let (done, is_done) = mpsc::channel::<()>();
        let at_home = std::thread::spawn(move || {
            run(home, async {
                let (stream, peer) = connection();
                leases.send((stream.lease().unwrap(), peer)).unwrap();
                let (gone, peer) = connection();
                let lease = gone.lease().unwrap();
                drop(peer);
                while lease.is_quiet() {
                    turn().await;
                }
                leases
                    .send((lease, TcpStream::connect(unused_listener().local_addr().unwrap()).unwrap()))
                    .unwrap();
                blocking(move || is_done.recv()).await.unwrap();
            })
            .unwrap();
        });
        run(other, async {
            start_clock();
            let (lease, mut peer) = leased.recv().unwrap();
            let stream = lease.claim().await.expect("it is quiet");
            send_all(&stream, b"hello", Told::AtOnce).await;
            let mut heard = [0; 5];
            peer.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"hello");
            let (closed, _) = leased.recv().unwrap();
            assert!(closed.claim().await.is_none(), "its peer is gone");
        })
        .unwrap();
        done.send(()).unwrap();
        at_home.join().unwrap();
    }
}

#[test]
fn a_lease_of_a_worker_that_has_ended_is_not_waited_for() {
    let home = std::thread::spawn(|| {
        let mut lease = None;
        run(Mode::Epoll, async { lease = Some(connection().0.lease().unwrap()) }).unwrap();
        lease.unwrap()
    });
    let lease = home.join().unwrap();
    run(Mode::Epoll, async { assert!(once(lease.claim()).await.expect("at once").is_none()) }).unwrap();
}

#[test]
fn more_streams_than_buffers_are_lent_lose_nothing() {
    on_each_driver(async || {
        let done = Rc::new(Cell::new(0));
        let pairs: Vec<_> = (0..600).map(|_| connection()).collect();
        let mut peers = Vec::new();
        for (stream, peer) in pairs {
            peers.push(peer);
            let done = Rc::clone(&done);
            spawn(async move {
                assert_eq!(recv_all(&stream).await, b"tick");
                done.set(done.get() + 1);
            });
        }
        turn().await;
        for mut peer in peers {
            peer.write_all(b"tick").unwrap();
        }
        while done.get() < 600 {
            turn().await;
        }
    });
}

#[test]
fn more_operations_in_one_turn_than_the_queue_takes_are_all_submitted() {
    on_each_driver(async || {
        // The ring's submission queue has 4,096 places.
        let events: Vec<_> = (0..5000).map(|_| Stream::adopt(event::event().unwrap()).unwrap()).collect();
        for event in &events {
            assert!(once(event.readable()).await.is_none());
        }
        events.iter().for_each(event::signal);
        for event in &events {
            event.readable().await.unwrap();
        }
    });
}

#[test]
fn futures_that_are_dropped_at_any_point_leave_no_buffer_behind() {
    on_each_driver(async || {
        for round in 0..200 {
            let (stream, mut peer) = connection();
            if round % 2 == 0 {
                peer.write_all(b"some bytes").unwrap();
            }
            let told = if round % 5 == 0 { Told::WithNext } else { Told::AtOnce };
            let _ = once(stream.send(buf_of(b"answer"), told)).await;
            let _ =
                once(async { (stream.recv().await, stream.recv_bulk().await, stream.recv().await) }).await;
            if round % 3 == 0 {
                turn().await;
            }
            let _ = once(stream.recv_bulk()).await;
            drop(stream);
        }
        // What is closed is let go of by the kernel within a turn or two.
        while buffers_out() > 0 {
            turn().await;
        }
    });
}

#[test]
fn a_socket_is_waited_for_with_a_tasks_own_waker_or_the_wait_is_a_counted_panic() {
    on_each_driver(async || {
        let before = panics();
        let (stream, mut peer) = connection();
        let stream = Rc::new(stream);
        let theirs = Rc::clone(&stream);
        spawn(async move {
            // As a combinator does that polls its futures with wakers of its own.
            let context = std::task::Context::from_waker(std::task::Waker::noop());
            let _ = theirs.poll_input(&context);
        });
        turn().await;
        assert!(panics() > before);
        assert_eq!(Rc::strong_count(&stream), 1, "that task has ended");
        peer.write_all(b"x").unwrap();
        assert_eq!(stream.input().await, Input::Bytes, "and the socket goes on");
    });
}

/// One turn of the driver.
pub(crate) async fn turn() {
    let mut is_second = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut is_second, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// The output of a future that is ready within a few turns; it is dropped if it is not.
async fn once_settled<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    for _ in 0..20 {
        if let Some(output) = once(future.as_mut()).await {
            return Some(output);
        }
        turn().await;
    }
    None
}

/// Waits for another thread without holding this one.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(work);
    while !thread.is_finished() {
        turn().await;
    }
    thread.join().unwrap()
}

fn unused_listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}
