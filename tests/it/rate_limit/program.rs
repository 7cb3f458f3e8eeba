//! The example program, as it runs: one process on memory, two on one Redis.

use http::Method;

use crate::support::{Browser, Program, program};

fn start(store: &str) -> Program {
    Program::start("rate_limit", &["127.0.0.1:0", store])
}

#[tokio::test]
async fn every_kind_of_limit_works_over_http() {
    let program = start("memory:");
    let browser = Browser::new(program.address());
    let pay = async || {
        let user = [("x-user", "u1")];
        browser.send(Method::POST, "/payments", &user, None).await
    };
    for left in (0..5).rev() {
        let paid = pay().await;
        assert_eq!(paid.body, format!("paid, {left} more within 15 minutes\n"));
    }
    let refused = pay().await;
    assert_eq!((refused.status.as_u16(), &*refused.code()), (429, "user"));
    assert!((890..=900).contains(&refused.header("retry-after").parse().unwrap()));

    let export = async |key| {
        let key = [("x-api-key", key)];
        browser
            .send(Method::GET, "/export", &key, None)
            .await
            .status
    };
    for expected in [200, 200, 200, 200, 429] {
        assert_eq!(export("k1").await.as_u16(), expected);
    }
    assert_eq!(export("gold").await.as_u16(), 200);

    for _ in 0..15 {
        let known = [("if-none-match", "\"1\"")];
        let report = browser.send(Method::GET, "/report", &known, None).await;
        assert_eq!(report.status.as_u16(), 304);
    }
    assert_eq!(browser.get("/report").await.status.as_u16(), 200);

    let login = async |password: &str| {
        let body = Some(password.to_owned());
        browser
            .send(Method::POST, "/login", &[], body)
            .await
            .status
            .as_u16()
    };
    let mut statuses = Vec::new();
    for password in ["wrong", "secret", "wrong", "wrong", "wrong", "secret"] {
        statuses.push(login(password).await);
    }
    assert_eq!(statuses, [401, 200, 401, 401, 401, 429]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_at_once_exactly_five_pass_over_two_processes_on_one_redis() {
    let server = crate::support::redis::shared().await;
    let programs = [start(&server.tcp_url()), start(&server.tcp_url())];
    let mut requests = tokio::task::JoinSet::new();
    for program in &programs {
        // A few connections each, so that the machine's sockets are not what is tested.
        for _ in 0..10 {
            let browser = Browser::new(program.address());
            requests.spawn(async move {
                let mut statuses = Vec::new();
                for _ in 0..50 {
                    let user = [("x-user", "u1")];
                    let reply = browser.send(Method::POST, "/payments", &user, None).await;
                    statuses.push(reply.status.as_u16());
                }
                statuses
            });
        }
    }
    let statuses = requests.join_all().await.concat();
    let of = |status| statuses.iter().filter(|seen| **seen == status).count();
    assert_eq!((of(200), of(429)), (5, 995));
}

#[tokio::test]
async fn of_a_thousand_in_flight_together_exactly_five_pass_over_two_processes_on_one_redis() {
    let server = crate::support::redis::shared().await;
    let (url, prefix) = (server.tcp_url(), crate::support::redis::fresh_prefix());
    let start = |_| {
        let arguments = ["burst", &*url, &*prefix, "500"];
        let mut command = program::command("data_steps", &arguments);
        command
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    let admitted = [(); 2].map(start).map(|child| {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        let count = said.trim().strip_prefix("admitted ").unwrap();
        count.parse::<u32>().unwrap()
    });
    assert_eq!(admitted.iter().sum::<u32>(), 5, "{admitted:?}");
}
