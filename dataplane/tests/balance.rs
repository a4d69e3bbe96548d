//! Long streams are spread over the workers: the kernel spreads connections by chance and knows nothing of how long they
//! stay.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::net::TcpListener;

use story::config::Config;
use story::wire::Wire;
use story::{DRIVERS, Proxy};

/// A worker keeps what it accepts until it has more streams than this beyond those of the idlest one.
const MARGIN: usize = 16;

/// A stream that has begun, and both of its ends.
struct Stream {
    client: Wire,
    upstream: Wire,
}

impl Stream {
    fn begin(proxy: &Proxy, listener: &TcpListener) -> Self {
        let mut client = proxy.connect();
        client.get("/events");
        let mut upstream = Wire::accept(listener);
        upstream.head();
        upstream
            .send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.head();
        let mut stream = Self { client, upstream };
        stream.pass("data: begun\n\n");
        stream
    }

    fn pass(&mut self, event: &str) {
        self.upstream.send(format!("{:x}\r\n{event}\r\n", event.len()));
        assert_eq!(self.client.chunk(), event);
    }
}

/// How many streams each worker has.
fn streams(proxy: &Proxy) -> Vec<usize> {
    let status = proxy.status();
    let threads = status["threads"].as_array().unwrap().iter();
    threads.map(|thread| usize::try_from(thread["streams"].as_u64().unwrap()).unwrap()).collect()
}

#[test]
fn a_worker_with_many_more_streams_than_another_gives_new_ones_away() {
    for driver in DRIVERS {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let config = Config::to(listener.local_addr().unwrap()).driver(driver).workers(2);
        let proxy = Proxy::start(&config);
        let mut held = Vec::new();
        // As chance may have it: those that came to the second worker have ended, and those of the first go on.
        while streams(&proxy)[0] <= MARGIN {
            let stream = Stream::begin(&proxy, &listener);
            if streams(&proxy)[1] == 0 {
                held.push(stream);
            } else {
                drop(stream);
                proxy.eventually("it has ended", |proxy| streams(proxy)[1] == 0);
            }
        }
        let handovers = || {
            ["out", "in"].map(|way| {
                let name = format!("millrace_worker_handovers_{way}_total");
                [0, 1].map(|worker| proxy.metric(&name, &[&format!("worker=\"{worker}\"")]))
            })
        };
        assert_eq!(handovers(), [[0, 0], [0, 0]], "{driver}: within the margin everybody keeps what comes");
        // The kernel gives about half of these to the first worker, and it keeps none of them.
        for number in 0..40 {
            let mut stream = Stream::begin(&proxy, &listener);
            assert_eq!(streams(&proxy), [MARGIN + 1, 1], "{driver}: connection {number}");
            stream.pass("data: served by the other\n\n");
            drop(stream);
            proxy.eventually("it has ended", |proxy| streams(proxy)[1] == 0);
        }
        let [[out, none_out], [none_in, taken]] = handovers();
        assert!(out > 0 && out == taken, "{driver}: {out} given, {taken} taken");
        assert_eq!((none_out, none_in), (0, 0), "{driver}: the idle worker gives nothing away");
        held.iter_mut().for_each(|stream| stream.pass("data: undisturbed\n\n"));
        drop(held);
        proxy.assert_at_rest();
    }
}
