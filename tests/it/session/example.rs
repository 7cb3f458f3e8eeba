//! The example program, as it runs; two processes of it on one Redis are one site.

use http::{Method, StatusCode};

use crate::support::{Browser, Program, RedisServer, Reply};

const FIREFOX: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0";
const COOKIE: &str = "__Host-id";

async fn post(browser: &Browser, path: &str, form: &str) -> Reply {
    let headers = [
        ("content-type", "application/x-www-form-urlencoded"),
        ("user-agent", FIREFOX),
    ];
    let form = Some(form.to_owned());
    browser.send(Method::POST, path, &headers, form).await
}

async fn login(browser: &Browser, user: &str, password: &str) -> StatusCode {
    let form = format!("user={user}&password={password}");
    post(browser, "/login", &form).await.status
}

/// A login that begins in the very millisecond of a revocation counts as begun before it.
async fn a_moment_later() {
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
}

async fn page(browser: &Browser, path: &str) -> String {
    let reply = browser.get(path).await;
    assert_eq!(reply.status, StatusCode::OK, "{path}");
    String::from_utf8(reply.body.to_vec()).unwrap()
}

fn field<'a>(page: &'a str, id: &str) -> &'a str {
    let start = page.find(&format!("id={id}>")).unwrap() + id.len() + 4;
    page[start..].split('<').next().unwrap()
}

/// The ids on the page of devices: the own one last.
fn devices(page: &str) -> (Vec<String>, String) {
    let rows: Vec<&str> = page.split("<li id=\"").skip(1).collect();
    let id = |row: &&str| row[..22].to_owned();
    let (here, others): (Vec<&str>, Vec<&str>) =
        rows.into_iter().partition(|row| row.contains("(here)"));
    assert_eq!(here.len(), 1);
    (others.iter().map(id).collect(), id(&here[0]))
}

const MOVED: StatusCode = StatusCode::SEE_OTHER;

#[tokio::test]
async fn the_example_logs_in_lists_devices_and_asks_for_a_fresh_login() {
    let program = Program::start("session", &["127.0.0.1:0"]);
    let (laptop, phone) = (
        Browser::new(program.address()),
        Browser::new(program.address()),
    );
    assert_eq!(post(&laptop, "/cart", "item=tea").await.status, MOVED);
    assert_eq!(post(&laptop, "/theme", "theme=dark").await.status, MOVED);
    let before = laptop.cookie(COOKIE).unwrap();
    assert_eq!(login(&laptop, "ada", "wrong").await, 401);
    assert_eq!(laptop.cookie(COOKIE), Some(before.clone()));
    assert_eq!(login(&laptop, "ada", "test").await, MOVED);
    assert_ne!(laptop.cookie(COOKIE).unwrap(), before);
    let home = page(&laptop, "/").await;
    assert_eq!(
        ["user", "theme", "cart"].map(|id| field(&home, id)),
        ["ada", "dark", "tea"]
    );
    assert_eq!(laptop.get("/admin").await.status, 200);

    assert_eq!(phone.get("/devices").await.status, 401);
    assert_eq!(login(&phone, "ada", "test").await, MOVED);
    let list = page(&laptop, "/devices").await;
    assert!(list.contains("Firefox on Linux at 127.0.0.1"), "{list}");
    let (others, own) = devices(&list);
    assert_eq!((others.len(), own.len()), (1, 22));
    let end = format!("/devices/{}/end", others[0]);
    assert_eq!(post(&laptop, &end, "").await.status, 204);
    assert_eq!(post(&laptop, &end, "").await.status, 404);
    assert_eq!(phone.get("/devices").await.status, 401);

    assert_eq!(login(&phone, "ada", "test").await, MOVED);
    let changed = post(&laptop, "/password", "password=new").await;
    assert_eq!(changed.status, MOVED);
    assert_eq!(phone.get("/devices").await.status, 401, "all others ended");
    a_moment_later().await;
    assert_eq!(login(&phone, "ada", "test").await, 401);
    assert_eq!(login(&phone, "ada", "new").await, MOVED);
    assert_eq!(post(&laptop, "/devices/others/end", "").await.status, MOVED);
    assert_eq!(phone.get("/devices").await.status, 401);
    assert_eq!(post(&laptop, "/logout", "").await.status, MOVED);
    assert_eq!(laptop.cookie(COOKIE), None);
    assert_eq!(login(&laptop, "bob", "test").await, MOVED);
    assert_eq!(laptop.get("/admin").await.status, 403);
}

/// Two processes on one server; the first takes no login for fresh.
fn site(server: &RedisServer) -> [Program; 2] {
    let url = server.url();
    ["0", "600"].map(|fresh| Program::start("session", &["127.0.0.1:0", &url, fresh]))
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_lose_no_write_and_revive_nothing() {
    let server = RedisServer::start().await;
    let programs = site(&server);
    let nodes = programs.each_ref().map(Program::address);
    let browser = Browser::new(nodes[0]);
    assert_eq!(login(&browser, "ada", "test").await, MOVED);

    // A login that one process takes for too old is fresh enough for the other.
    let stale = post(&browser, "/password", "password=test").await;
    assert_eq!(
        (stale.status.as_u16(), &*stale.code()),
        (401, "REAUTHENTICATION_REQUIRED")
    );
    assert_eq!(
        stale.header("www-authenticate"),
        "Session error=\"insufficient_user_authentication\", max_age=0"
    );

    // Of changes at once, both by compare and set and blind, none is lost.
    let writes = (0..16).map(|n| {
        let browser = browser.at(nodes[n % 2]);
        tokio::spawn(async move {
            let theme = post(&browser, "/theme", "theme=dark");
            let item = format!("item=i{n}");
            let (theme, cart) = tokio::join!(theme, post(&browser, "/cart", &item));
            (theme.status, cart.status)
        })
    });
    for write in writes.collect::<Vec<_>>() {
        assert_eq!(write.await.unwrap(), (MOVED, MOVED));
    }
    let home = page(&browser.at(nodes[1]), "/").await;
    let mut cart: Vec<&str> = field(&home, "cart").split(", ").collect();
    cart.sort_unstable();
    let mut all: Vec<String> = (0..16).map(|n| format!("i{n}")).collect();
    all.sort_unstable();
    assert_eq!(
        (field(&home, "theme"), cart),
        ("dark", all.iter().map(|one| &**one).collect())
    );

    // Of rotations of one secret at once exactly one leaves a cookie that is good.
    let token = browser.cookie(COOKIE).unwrap();
    let rotations = (0..8).map(|_| {
        let thief = with_cookie(nodes[1], &token);
        tokio::spawn(async move {
            let reply = post(&thief, "/password", "password=test").await;
            (reply.status, thief)
        })
    });
    let (mut good, mut refused) = (Vec::new(), 0);
    for rotation in rotations.collect::<Vec<_>>() {
        let (status, browser) = rotation.await.unwrap();
        let user = page(&browser.at(nodes[0]), "/").await;
        match (status.as_u16(), field(&user, "user")) {
            (303, "ada") => good.push(browser),
            (401 | 303, "nobody") => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((good.len(), refused), (1, 7));
    let browser = good.remove(0);

    // Logout and revocation win against whatever is in flight at both, for ever.
    for round in 0..20 {
        let other = Browser::new(nodes[1]);
        a_moment_later().await;
        assert_eq!(login(&other, "ada", "test").await, MOVED);
        let token = other.cookie(COOKIE).unwrap();
        let in_flight: Vec<_> = (0..12)
            .map(|n| {
                let thief = with_cookie(nodes[n % 2], &token);
                tokio::spawn(async move {
                    let reply = match n % 3 {
                        0 => post(&thief, "/cart", "item=x").await,
                        1 => post(&thief, "/theme", "theme=x").await,
                        _ => thief.get("/").await,
                    };
                    assert!(reply.status.as_u16() < 500, "{reply:?}");
                })
            })
            .collect();
        if round % 2 == 0 {
            assert_eq!(post(&other, "/logout", "").await.status, MOVED);
        } else {
            let end = post(&browser, "/devices/others/end", "").await;
            assert_eq!(end.status, MOVED);
        }
        // What starts now finds it dead, before and after what was in flight has ended.
        for node in nodes {
            let home = page(&with_cookie(node, &token), "/").await;
            assert_eq!((field(&home, "user"), field(&home, "cart")), ("nobody", ""));
        }
        for request in in_flight {
            request.await.unwrap();
        }
        for node in nodes {
            let home = page(&with_cookie(node, &token), "/").await;
            assert_eq!((field(&home, "user"), field(&home, "cart")), ("nobody", ""));
        }
    }
    assert_eq!(field(&page(&browser, "/").await, "user"), "ada");
}

/// A browser of its own with this token.
fn with_cookie(node: std::net::SocketAddr, token: &str) -> Browser {
    let browser = Browser::new(node);
    browser.plant(COOKIE, token);
    browser
}
