//! Against servers that answer by halves, late, wrongly or not at all.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;

use super::*;

fn wire(room: usize) -> (Wire, DuplexStream, JoinHandle<()>) {
    let (own, server) = duplex(room);
    let (wire, driver) = Wire::over(Box::new(own));
    (wire, server, tokio::spawn(driver))
}

fn echo(text: &str) -> Command {
    Command::new("ECHO").arg(text)
}

fn said(text: &str) -> Reply {
    Reply::Bytes(text.to_owned().into())
}

/// The next command, by its second word.
async fn hear(server: &mut DuplexStream, heard: &mut BytesMut) -> Option<String> {
    loop {
        match resp::read(heard) {
            Ok((command, length)) => {
                heard.advance(length);
                let mut words = command.unwrap().array().unwrap().into_iter();
                let word = words.nth(1).unwrap().bytes().unwrap();
                return Some(String::from_utf8(word.into()).unwrap());
            }
            Err(Unread::Needs(_)) => match server.read_buf(heard).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            },
            Err(Unread::Broken(why)) => panic!("{why}"),
        }
    }
}

/// Answers what it is told, but an error where that begins with `-`, until the connection ends.
async fn answer(mut server: DuplexStream) {
    let mut heard = BytesMut::new();
    while let Some(word) = hear(&mut server, &mut heard).await {
        let line = match word.strip_prefix('-') {
            Some(error) => format!("-{error}\r\n"),
            None => format!("${}\r\n{word}\r\n", word.len()),
        };
        if server.write_all(line.as_bytes()).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn each_caller_gets_its_own_answer_also_byte_by_byte_and_beside_those_who_left() {
    for room in [1, 7, 100_000] {
        let (wire, server, _driver) = wire(room);
        tokio::spawn(answer(server));
        let calls = (0..200).map(|number| {
            let wire = wire.clone();
            async move {
                let text = format!("{number} {}", "x".repeat(number));
                let command = echo(&text);
                let call = wire.send(&command);
                if number % 3 == 0 {
                    // Leaves once its command is on its way.
                    let mut call = pin!(call);
                    let left = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await;
                    assert!(left.is_pending());
                    return;
                }
                assert_eq!(call.await.unwrap(), said(&text));
            }
        });
        join_all(calls).await;
    }
}

#[tokio::test]
async fn of_several_commands_the_first_error_counts_and_the_next_caller_is_not_shifted() {
    let (wire, server, _driver) = wire(50);
    tokio::spawn(answer(server));
    let texts = ["a", "-ERR one", "-ERR two", "b"];
    let error = wire.send_all(&texts.map(echo)).await.unwrap_err();
    assert_eq!(error.detail(), Some("one"));
    let all = wire.send_all(&["a", "b"].map(echo)).await.unwrap();
    assert_eq!(all, Reply::Array(vec![said("a"), said("b")]));
    let one = wire.send_all(&[echo("a")]).await.unwrap();
    assert_eq!(one, Reply::Array(vec![said("a")]));
    assert_eq!(wire.send_all(&[]).await.unwrap(), Reply::Array(vec![]));
    assert_eq!(wire.send(&echo("c")).await.unwrap(), said("c"));
}

#[tokio::test]
async fn a_server_that_hangs_up_ends_it_for_those_who_wait_and_those_who_come() {
    let (wire, mut server, driver) = wire(1_000);
    let waiting = [wire.clone(), wire.clone()]
        .map(|wire| tokio::spawn(async move { wire.send(&echo("a")).await }));
    assert_eq!(hear(&mut server, &mut BytesMut::new()).await.unwrap(), "a");
    // Half an answer is none.
    server.write_all(b"$5\r\nab").await.unwrap();
    drop(server);
    for call in waiting {
        assert!(call.await.unwrap().unwrap_err().is_io_error());
    }
    driver.await.unwrap();
    assert!(wire.send(&echo("b")).await.unwrap_err().is_io_error());
    let why = wire.why().to_string();
    assert!(why.contains("hung up"), "{why}");
}

#[tokio::test]
async fn what_is_no_answer_or_nobody_asked_for_ends_it() {
    for (asked, line) in [(true, "?\r\n"), (true, "$1\r\nabc"), (false, "+OK\r\n")] {
        let (wire, mut server, driver) = wire(1_000);
        let call = asked.then(|| {
            let wire = wire.clone();
            tokio::spawn(async move { wire.send(&echo("a")).await })
        });
        server.write_all(line.as_bytes()).await.unwrap();
        driver.await.unwrap();
        if let Some(call) = call {
            assert!(call.await.unwrap().unwrap_err().is_io_error(), "{line:?}");
        }
        assert!(wire.send(&echo("b")).await.is_err(), "{line:?}");
    }
}

#[tokio::test]
async fn it_ends_with_its_last_holder_also_where_the_server_takes_nothing_more() {
    for text in ["a", &"x".repeat(10_000)] {
        let (wire, mut server, driver) = wire(100);
        let (other, command) = (wire.clone(), echo(text));
        // Its command is stuck half-way.
        let sent = tokio::time::timeout(Duration::from_millis(20), wire.send(&command)).await;
        assert!(sent.is_err());
        drop(wire);
        tokio::task::yield_now().await;
        assert!(!driver.is_finished());
        drop(other);
        driver.await.unwrap();
        let mut rest = BytesMut::new();
        while server.read_buf(&mut rest).await.unwrap() > 0 {}
    }
}

#[tokio::test]
async fn a_driver_that_is_gone_with_its_runtime_is_told() {
    let (wire, _server, driver) = wire(1_000);
    let waiting = {
        let wire = wire.clone();
        tokio::spawn(async move { wire.send(&echo("a")).await })
    };
    tokio::task::yield_now().await;
    driver.abort();
    assert!(waiting.await.unwrap().unwrap_err().is_io_error());
    assert!(wire.send(&echo("b")).await.unwrap_err().is_io_error());
}

#[tokio::test]
async fn where_the_server_takes_nothing_callers_wait_with_their_words_and_go_on_when_it_does() {
    let (wire, server, _driver) = wire(1_000);
    let text = "x".repeat(MOST_UNSENT / 4);
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let (wire, command) = (wire.clone(), echo(&text));
            tokio::spawn(async move { wire.send(&command).await })
        })
        .collect();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let unsent = wire.hold.shared.state.lock().unsent.len();
    assert!((MOST_UNSENT..2 * MOST_UNSENT).contains(&unsent), "{unsent}");
    // Some leave, others wait on.
    calls.iter().take(5).for_each(JoinHandle::abort);
    tokio::spawn(answer(server));
    for call in calls.into_iter().skip(5) {
        assert_eq!(call.await.unwrap().unwrap(), said(&text));
    }
    let state = wire.hold.shared.state.lock();
    assert!(state.unsent.capacity() <= MOST_KEPT);
    assert!(state.waiting.is_empty());
}

#[tokio::test]
async fn those_who_were_answered_ask_again_before_all_the_others_are_answered() {
    let (wire, mut server, _driver) = wire(1 << 20);
    let callers = 3 * ANSWERS_OF_A_TURN;
    for _ in 0..callers {
        let wire = wire.clone();
        tokio::spawn(async move { while wire.send(&echo("a")).await.is_ok() {} });
    }
    let mut heard = BytesMut::new();
    for _ in 0..callers {
        hear(&mut server, &mut heard).await.unwrap();
    }
    server
        .write_all("+OK\r\n".repeat(callers).as_bytes())
        .await
        .unwrap();
    hear(&mut server, &mut heard).await.unwrap();
    // The first of them are here, and not all: the others are being answered meanwhile.
    let came = 1 + heard.len() / "*2\r\n$4\r\nECHO\r\n$1\r\na\r\n".len();
    assert!((1..=ANSWERS_OF_A_TURN).contains(&came), "{came}");
}

#[tokio::test]
async fn whoever_is_answered_has_it_after_a_few_turns_however_many_wait_and_whatever_they_ask() {
    let (own, mut server) = duplex(1 << 20);
    let (wire, driver) = Wire::over(Box::new(own));
    let mut driver = pin!(driver);
    let mut turn = async || {
        // Each with what the runtime lets a task do at once.
        tokio::task::yield_now().await;
        let polled = poll_fn(|cx| Poll::Ready(driver.as_mut().poll(cx))).await;
        assert!(polled.is_pending());
    };
    let command = [echo("a"), echo("b"), echo("c"), echo("d")];
    // A few first, so that a turn that was decided then would be a short one.
    let mut calls: Vec<_> = (0..203)
        .map(|_| Box::pin(wire.send_all(&command)))
        .collect();
    let (early, late) = calls.split_at_mut(3);
    let mut noop = Context::from_waker(Waker::noop());
    for call in early {
        assert!(call.as_mut().poll(&mut noop).is_pending());
    }
    turn().await;
    for call in &mut *late {
        assert!(call.as_mut().poll(&mut noop).is_pending());
    }
    turn().await;
    server
        .write_all("+OK\r\n".repeat(4 * 203).as_bytes())
        .await
        .unwrap();
    for _ in 0..TURNS_FOR_ALL + 1 {
        turn().await;
    }
    for call in &mut calls {
        tokio::task::yield_now().await;
        assert!(call.as_mut().poll(&mut noop).is_ready());
    }
}
