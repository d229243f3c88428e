//! The live page, in a real browser and by hand-written HTTP.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
};

use asng_proto::v1;
use asng_tests::{
    Browser, Controller, Trainer, applied, asng_controller, create_request, study_when,
    tiny_search, train,
};

/// Status, head and body of the answer to a request with these further lines in its head.
fn ask(http: SocketAddr, request: &str, lines: &[&str]) -> (u16, String, String) {
    let mut stream = TcpStream::connect(http).unwrap();
    let mut head = format!("{request} HTTP/1.1\r\nconnection: close\r\ncontent-length: 0\r\n");
    if !lines.iter().any(|line| line.starts_with("host:")) {
        head += &format!("host: {http}\r\n");
    }
    lines.iter().for_each(|line| head += &format!("{line}\r\n"));
    write!(stream, "{head}\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("HTTP");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.into(), body.into())
}

/// The state that a page shows; undefined while the page is being read.
const STATE: &str = "document.querySelector('.title .state')?.textContent";

#[tokio::test(flavor = "multi_thread")]
async fn a_page_follows_a_search_and_pauses_resumes_and_stops_it() {
    let Some(browser) = Browser::start() else { return };
    let directory = tempfile::tempdir().unwrap();
    // As behind a proxy that shows other things beside it.
    let state = directory.path().join("state");
    let controller = Controller::start_with(&state, &["--http-prefix=/lab/asng"]);
    let mut request = create_request("artificial", 10_000_000);
    let spec = request.spec.as_mut().unwrap();
    (spec.space, spec.variables) = ("toy".into(), Vec::new());
    let mut studies = controller.studies();
    studies.create_study(request).await.unwrap();

    let origin = format!("http://{}/lab/asng/", controller.http);
    browser.open(&origin);
    browser.click("artificial");
    browser.wait(&format!("return {STATE} === 'WAITING'"));
    let _trainer = Trainer::start(&controller, "artificial", &directory.path().join("work"));
    browser.run("window.opened = true");
    browser.wait(&format!("return {STATE} === 'RUNNING' && document.querySelector('#theta svg')"));
    browser.run("window.before = document.querySelector('#theta').innerHTML");
    browser.wait("return document.querySelector('#theta').innerHTML !== window.before");
    assert_eq!(browser.run("return window.opened"), true, "it was loaded again");

    browser.click("Pause");
    browser.wait(&format!("return {STATE} === 'PAUSED'"));
    let paused = |study: &v1::Study| study.state() == v1::StudyState::Paused;
    study_when(&controller, "artificial", paused).await;
    browser.click("Resume");
    browser.wait(&format!("return {STATE} === 'RUNNING'"));
    study_when(&controller, "artificial", |study| !paused(study)).await;

    // What somebody else does is seen, and does not take the keyboard's place away.
    browser.wait(
        "const stop = document.querySelector('.controls form + form button'); stop?.focus(); return window.opened = !!stop",
    );
    studies.pause_study(v1::PauseStudyRequest { name: "artificial".into() }).await.unwrap();
    browser.wait(&format!("return window.opened && {STATE} === 'PAUSED'"));
    browser.wait("return document.querySelector('.controls button')?.textContent === 'Resume'");
    assert_eq!(browser.run("return document.activeElement.textContent"), "Stop…");

    browser.click("Stop…");
    browser.click("Stop the study");
    browser.wait(&format!("return {STATE} === 'STOPPED'"));
    assert!(browser.run("return document.querySelector('.controls button')").is_null());

    assert_eq!(browser.console(), [""; 0]);
    let requests = browser.requests();
    assert!(requests.iter().any(|url| url.ends_with("/studies/artificial/events")), "{requests:?}");
    for url in requests {
        assert!(url.starts_with(&origin) || url.starts_with("data:"), "{url}");
    }
}

const LEAD: &str =
    "[[token]]\nname = \"lead\"\nrole = \"admin\"\ntoken = \"a-secret-of-the-lead\"\n";
const GUEST: &str = "[[token]]\nname = \"guest\"\nrole = \"viewer\"\ntoken = \"a-secret-of-the-guest\"\n\
                     owner = \"lab\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_a_token_logs_in_and_sees_and_does_what_it_allows() {
    let Some(browser) = Browser::start() else { return };
    let directory = tempfile::tempdir().unwrap();
    let (state, certs) = (directory.path().join("state"), directory.path().join("certs"));
    let tokens = directory.path().join("tokens.toml");
    fs::write(&tokens, [LEAD, GUEST].concat()).unwrap();
    let mut command = Command::new(asng_controller());
    assert!(command.args(["certs", "--out"]).arg(&certs).output().unwrap().status.success());
    let mut open = Controller::start(&state);
    for (name, owner) in [("ours", "lab"), ("theirs", "others")] {
        let mut request = create_request(name, 10);
        request.spec.as_mut().unwrap().owner = owner.into();
        open.studies().create_study(request).await.unwrap();
    }
    assert!(open.terminate().success());

    // Under mutual TLS, which a browser has no part in.
    let file = |name: &str| certs.join(name).to_str().unwrap().to_owned();
    let controller = Controller::start_with(
        &state,
        &[
            "--http=https://127.0.0.1:0",
            &format!("--token-file={}", tokens.display()),
            &format!("--tls-cert={}", file("server.pem")),
            &format!("--tls-key={}", file("server-key.pem")),
            &format!("--tls-client-ca={}", file("ca.pem")),
        ],
    );
    let origin = format!("https://{}", controller.http);
    browser.open(&format!("{origin}/studies/ours"));
    browser.type_into("token", "a-secret-of-nobody-here");
    browser.click("Log in");
    browser.wait("return document.querySelector('.fault')");
    assert!(browser.text().contains("unknown or revoked token"));
    browser.type_into("token", "a-secret-of-the-guest");
    browser.click("Log in");
    browser.wait("return document.querySelector('.title')");
    assert_eq!(browser.url(), format!("{origin}/studies/ours"));
    assert_eq!(browser.run("return document.cookie"), "", "scripts see the session");
    assert!(browser.run("return document.querySelector('.controls')").is_null());

    // A bound token sees its own studies; a viewer changes none, whatever it sends.
    browser.open(&origin);
    let text = browser.text();
    assert!(text.contains("ours") && !text.contains("theirs"), "{text}");
    browser.open(&format!("{origin}/studies/theirs"));
    assert!(browser.text().contains("there is no study \"theirs\""));
    browser.run(
        "fetch('/studies/ours/pause', {method: 'POST'}).then(async (answer) => {
            document.title = answer.status + await answer.text();
        })",
    );
    let refusal = browser.wait("return document.title.startsWith('403') && document.title");
    let expected = "PauseStudy needs a token of role admin; &quot;guest&quot; has role viewer";
    assert!(refusal.as_str().unwrap().contains(expected), "{refusal}");

    browser.open(&origin);
    browser.click("Log out");
    browser.wait("return location.pathname === '/login'");
    browser.open(&origin);
    browser.type_into("token", "a-secret-of-the-lead");
    browser.click("Log in");
    browser.click("theirs");
    browser.click("Pause");
    browser.wait(&format!("return {STATE} === 'PAUSED'"));

    // A token that is withdrawn ends its session.
    fs::write(&tokens, GUEST).unwrap();
    controller.signal("HUP");
    controller.log_with("read again");
    browser.open(&origin);
    assert_eq!(browser.url(), format!("{origin}/login?to=/"));
    let log = controller.log_with("an admin acts token=\"lead\"");
    assert!(!log.contains("a-secret"), "{log}");
    assert!(browser.requests().iter().all(|url| !url.contains("secret")));
}

#[tokio::test]
async fn pages_are_strict_and_take_forms_of_their_own_alone() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let http = controller.http;
    controller.studies().create_study(create_request("s", 1500)).await.unwrap();
    let (status, head, _) = ask(http, "GET /studies/s", &[]);
    assert_eq!(status, 200);
    for line in [
        "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
         connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
        "x-content-type-options: nosniff",
        "referrer-policy: same-origin",
        "cache-control: no-store",
    ] {
        assert!(head.contains(line), "{head}");
    }
    let own = format!("origin: http://{http}");
    for (lines, expected) in [
        (&[][..], 403),
        (&["origin: http://example.org"], 403),
        (&["origin: null"], 403),
        (&["sec-fetch-site: cross-site", &own], 403),
        (&["sec-fetch-site: same-site"], 403),
        (&["sec-fetch-site: same-origin"], 303),
        (&[&own], 303),
    ] {
        assert_eq!(ask(http, "POST /studies/s/pause", lines).0, expected, "{lines:?}");
    }
    // A name that somebody else has made to mean this machine.
    let elsewhere = ["host: example.org", "origin: http://example.org"];
    for request in ["GET /", "POST /studies/s/resume"] {
        assert_eq!(ask(http, request, &elsewhere).0, 403);
    }
    assert_eq!(ask(http, "GET /metrics", &elsewhere).0, 200);
    for (request, expected) in [
        ("GET /studies/nobody", 404),
        ("GET /studies/nobody/events", 404),
        ("GET /?after=nonsense", 400),
        ("GET /studies/s%0d%0aset-cookie:x", 404),
    ] {
        assert_eq!(ask(http, request, &[]).0, expected, "{request}");
    }

    // However much has happened, a page shows some of it.
    controller.studies().resume_study(v1::ResumeStudyRequest { name: "s".into() }).await.unwrap();
    train(controller.search(), "s", "t", |_, _| {}).await;
    let (_, _, body) = ask(http, "GET /studies/s", &[]);
    assert!(body.contains("FINISHED") && !body.contains("data-events"), "{body}");
    assert!(body.matches("<tr>").count() <= 60 && body.len() < 500_000, "{}", body.len());
}

#[tokio::test]
async fn the_list_begins_with_the_newest_studies_a_page_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let mut studies = controller.studies();
    for i in 0..70 {
        studies.create_study(create_request(&format!("s{i}"), 10)).await.unwrap();
    }
    let (mut path, mut seen) = ("/".to_owned(), Vec::new());
    loop {
        let (_, _, body) = ask(controller.http, &format!("GET {path}"), &[]);
        let links = body.split("href=\"/studies/").skip(1);
        let names: Vec<_> = links.map(|link| link.split('"').next().unwrap().to_owned()).collect();
        assert!(names.len() <= 50);
        seen.extend(names);
        let Some((_, next)) = body.split_once("href=\"/?after=") else { break };
        path = format!("/?after={}", next.split('"').next().unwrap());
    }
    assert_eq!(seen, (0..70).rev().map(|i| format!("s{i}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_study_that_nobody_works_on_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let mut request = create_request("faces", 10);
    let spec = request.spec.as_mut().unwrap();
    (spec.space, spec.variables) = ("inpaint-cat".into(), Vec::new());
    let created = controller.studies().create_study(request).await.unwrap().into_inner();
    let page = || ask(controller.http, "GET /studies/faces", &[]).2;
    let serve = "no trainer has asked this controller for work; start one with asng-trainer serve";
    assert!(page().contains(serve), "{}", page());

    let mut lease = v1::LeaseStepRequest {
        trainer_id: "gpu-1".into(),
        spaces: vec!["toy".into()],
        unserved: vec![v1::UnservedSpace {
            space: "inpaint-cat".into(),
            reason: "no photos in <data>".into(),
        }],
        ..Default::default()
    };
    controller.search().lease_step(lease.clone()).await.unwrap();
    let page_then = page();
    for words in [
        "no connected trainer serves space inpaint-cat",
        "gpu-1 (serves toy; has no work): no photos in &lt;data&gt;",
    ] {
        assert!(page_then.contains(words), "{page_then}");
    }
    let (_, _, list) = ask(controller.http, "GET /", &[]);
    assert!(list.contains("inpaint-cat: no photos in &lt;data&gt;"), "{list}");

    let mut request = create_request("on-flowers", 10);
    let spec = request.spec.as_mut().unwrap();
    (spec.space, spec.variables) = ("inpaint-cat".into(), Vec::new());
    spec.settings.insert("dataset".into(), "flowers".into());
    controller.studies().create_study(request).await.unwrap();
    lease.spaces.push("inpaint-cat".into());
    lease.unserved.clear();
    lease.data_sets.push("birds".into());
    controller.search().lease_step(lease.clone()).await.unwrap();
    let (_, _, on_flowers) = ask(controller.http, "GET /studies/on-flowers", &[]);
    for words in
        ["start one with asng-trainer serve --images flowers=DIR", "has only the data sets birds"]
    {
        assert!(on_flowers.contains(words), "{on_flowers}");
    }
    let (_, _, list) = ask(controller.http, "GET /", &[]);
    assert!(list.contains(">birds<"), "{list}");

    lease.set_aside.push(v1::SetAsideStudy {
        study: "faces".into(),
        study_id: created.study.unwrap().study_id,
        reason: "no whole checkpoint".into(),
        retry_after: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
    });
    controller.search().lease_step(lease).await.unwrap();
    let words = "gpu-1 has set this study aside: no whole checkpoint; tries again in";
    assert!(page().contains(words), "{}", page());
    let (_, _, list) = ask(controller.http, "GET /", &[]);
    assert!(list.contains("faces: no whole checkpoint; tries again in"), "{list}");
}

#[tokio::test]
async fn a_study_that_maximizes_has_values_and_no_losses() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    for direction in [v1::Direction::Minimize, v1::Direction::Maximize] {
        let mut request = create_request("s", 9);
        request.spec.as_mut().unwrap().direction = direction.into();
        controller.studies().create_study(request).await.unwrap();
        train(controller.search(), "s", "t", |_, _| {}).await;
        let page = ask(controller.http, "GET /studies/s", &[]).2;
        let words = |loss: &str, losses: &str, best: &str| {
            [
                format!("best {loss}"),
                format!("{losses} and metrics"),
                format!("{losses} of ranked architectures"),
                format!("{best} {loss} by parameters: Pareto front"),
            ]
        };
        let losses = words("loss", "Losses", "Smallest").map(|words| page.contains(&words));
        let values = words("value", "Values", "Largest").map(|words| page.contains(&words));
        let maximizes = direction == v1::Direction::Maximize;
        assert_eq!((losses, values), ([!maximizes; 4], [maximizes; 4]), "{page}");
        let request = v1::DeleteStudyRequest { name: "s".into() };
        controller.studies().delete_study(request).await.unwrap();
    }
}

/// Every address in a page: of links, forms, the script, the style and the events.
fn addresses(page: &str) -> Vec<&str> {
    let after = |attribute: &str| {
        let attribute = format!(" {attribute}=\"");
        let parts = page.split(attribute.as_str()).skip(1).collect::<Vec<_>>();
        parts.into_iter().map(|part| part.split('"').next().unwrap()).collect::<Vec<_>>()
    };
    let all = ["href", "src", "action", "data-events"].map(after).concat();
    all.into_iter().filter(|address| !address.starts_with('#')).collect()
}

#[tokio::test]
async fn everything_stays_under_a_path_prefix() {
    let directory = tempfile::tempdir().unwrap();
    let tokens = directory.path().join("tokens.toml");
    fs::write(&tokens, LEAD).unwrap();
    let tokens = format!("--token-file={}", tokens.display());
    let arguments = ["--http-prefix=/asng/", &*tokens];
    let controller = Controller::start_with(&directory.path().join("state"), &arguments);
    let http = controller.http;
    let mut create = tonic::Request::new(create_request("s", 10));
    let token = "Bearer a-secret-of-the-lead".parse().unwrap();
    create.metadata_mut().insert("authorization", token);
    controller.studies().create_study(create).await.unwrap();

    for path in
        ["/healthz", "/readyz", "/metrics", "/asng/healthz", "/asng/readyz", "/asng/metrics"]
    {
        assert_eq!(ask(http, &format!("GET {path}"), &[]).0, 200, "{path}");
    }
    let (status, head, _) = ask(http, "GET /asng/studies/s", &[]);
    assert_eq!(status, 303);
    assert!(head.contains("location: /asng/login?to=/studies/s"), "{head}");
    let (_, _, page) = ask(http, "GET /asng/login", &[]);
    assert!(page.contains("action=\"/asng/login\""), "{page}");

    let form = "token=a-secret-of-the-lead&to=/studies/s";
    let mut stream = TcpStream::connect(http).unwrap();
    let head = "POST /asng/login HTTP/1.1\r\nconnection: close\r\nsec-fetch-site: same-origin\r\n\
                content-type: application/x-www-form-urlencoded";
    write!(stream, "{head}\r\nhost: {http}\r\ncontent-length: {}\r\n\r\n{form}", form.len())
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("location: /asng/studies/s"), "{answer}");
    let (_, cookie) = answer.split_once("set-cookie: ").unwrap();
    assert!(cookie.contains("; Path=/asng; "), "{cookie}");
    let cookie = format!("cookie: {}", cookie.split(';').next().unwrap());

    let own = "sec-fetch-site: same-origin";
    // A proxy may strip the prefix.
    for (path, status) in [
        ("/asng", 200),
        ("/asng/", 200),
        ("/asng/?name=s&state=RUNNING", 200),
        ("/", 200),
        ("/asng/studies/s", 200),
        ("/studies/s", 200),
        ("/asng/studies/s/stop", 200),
        ("/asng/studies/nobody", 404),
        ("/asng/nothing", 404),
    ] {
        let (got, _, page) = ask(http, &format!("GET {path}"), &[&cookie]);
        assert_eq!(got, status, "{path}");
        let addresses = addresses(&page);
        assert!(addresses.len() >= 4, "{path}: {page}");
        for address in addresses {
            assert!(address.starts_with("/asng/"), "{path}: {address}");
        }
    }
    for asset in ["style.css", "page.js", "icon.svg"] {
        assert_eq!(ask(http, &format!("GET /asng/assets/{asset}"), &[]).0, 200);
    }
    for (form, location) in [
        ("studies/s/pause", "/asng/studies/s"),
        ("studies/s/resume", "/asng/studies/s"),
        ("studies/s/stop", "/asng/studies/s"),
        ("logout", "/asng/login"),
    ] {
        let (status, head, _) = ask(http, &format!("POST /asng/{form}"), &[&cookie, own]);
        assert_eq!(status, 303, "{form}");
        assert!(head.contains(&format!("location: {location}\r\n")), "{head}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn studies_are_found_by_name_and_state_while_the_page_follows_them() {
    let Some(browser) = Browser::start() else { return };
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path());
    let mut studies = controller.studies();
    for i in 0..70 {
        let name = if i % 2 == 0 { format!("even-{i}") } else { format!("Odd-{i}") };
        studies.create_study(create_request(&name, 10)).await.unwrap();
    }
    studies.pause_study(v1::PauseStudyRequest { name: "Odd-69".into() }).await.unwrap();
    let names = "return [...document.querySelectorAll('.studies tbody th')].map((name) => name.textContent).join()";
    browser.open(&format!("http://{}/", controller.http));
    assert!(browser.text().contains("70 studies"), "{}", browser.text());
    assert!(browser.text().contains("No trainer has asked this controller for work"));

    browser.run("window.opened = true; document.getElementById('name').focus()");
    browser.type_into("name", "odd");
    // Redrawing leaves the field alone.
    let reason = "no photos in data/photos".to_owned();
    let request = v1::LeaseStepRequest {
        trainer_id: "gpu-1".into(),
        spaces: vec!["toy".into()],
        unserved: vec![v1::UnservedSpace { space: "inpaint-cat".into(), reason: reason.clone() }],
        ..Default::default()
    };
    controller.search().lease_step(request).await.unwrap();
    browser.wait(&format!("return document.body?.innerText.includes('inpaint-cat: {reason}')"));
    assert_eq!(browser.run("return window.opened && document.activeElement.value"), "odd");

    // The keyboard alone: Enter in the field sends the form.
    browser.type_into("name", "\u{e007}");
    browser.wait("return document.body?.innerText.includes('35 matching studies')");
    assert!(browser.url().ends_with("/?name=odd&state="), "{}", browser.url());
    browser.run("document.getElementById('state').value = 'PAUSED'");
    browser.click("Search");
    browser.wait("return document.body?.innerText.includes('1 matching study')");
    assert_eq!(browser.run(names), "Odd-69");
    studies.pause_study(v1::PauseStudyRequest { name: "Odd-1".into() }).await.unwrap();
    browser.wait("return document.body?.innerText.includes('2 matching studies')");
    assert_eq!(browser.run(names), "Odd-69,Odd-1");

    // A search goes on to its next page.
    for i in 0..60 {
        studies
            .create_study(create_request(&format!("odd&{i}").replace('&', "."), 10))
            .await
            .unwrap();
    }
    browser.open(&format!("http://{}/?name=odd", controller.http));
    browser.click("Older");
    browser.wait("return location.search.includes('after=') && document.querySelector('.studies')");
    let last = browser.run(names);
    assert!(last.as_str().unwrap().ends_with("Odd-3,Odd-1"), "{last}");
    assert!(!last.as_str().unwrap().contains("even"), "{last}");
    browser.click("Newest");
    browser.wait("return location.search === '?name=odd'");
    browser.click("All studies");
    browser
        .wait("return location.search === '' && document.body?.innerText.includes('130 studies')");
    assert_eq!(browser.console(), [""; 0]);

    let nothing = ask(controller.http, "GET /?name=nothing", &[]);
    assert!(nothing.2.contains("No study matches."), "{}", nothing.2);
    assert_eq!(ask(controller.http, "GET /?state=nonsense", &[]).0, 400);
    assert_eq!(ask(controller.http, "GET /?state=RUNNING&after=nonsense", &[]).0, 400);
}

#[test]
fn other_machines_are_not_shown_a_page_by_oversight() {
    let directory = tempfile::tempdir().unwrap();
    let tokens = directory.path().join("tokens.toml");
    fs::write(&tokens, GUEST).unwrap();
    let tokens = format!("--token-file={}", tokens.display());
    for (arguments, status, words) in [
        (&[][..], 403, "would give everyone full access. Give --token-file; or give --insecure"),
        (&[&*tokens], 403, "would be in plain text. Give --http https://"),
        (&["--insecure"], 200, "There are no studies yet"),
        (&[&*tokens, "--insecure"], 303, ""),
    ] {
        let state = tempfile::tempdir().unwrap();
        let arguments = [&["--http=0.0.0.0:0"], arguments].concat();
        let controller = Controller::start_with(state.path(), &arguments);
        let answer = ask(controller.http, "GET /", &[]);
        assert!(answer.0 == status && answer.2.contains(words), "{arguments:?}: {answer:?}");
        assert_eq!(ask(controller.http, "GET /metrics", &[]).0, 200);
    }
}

/// Writes the pictures of the README, from a real search.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes; `cargo xtask screenshots` runs it"]
async fn screenshots() {
    let browser = Browser::start().expect("Chromium");
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(&directory.path().join("state"));
    let mut request = tiny_search("cifar", 800);
    request.spec.as_mut().unwrap().settings.insert("nodes".into(), "5".into());
    controller.studies().create_study(request).await.unwrap();
    let _trainer = Trainer::start(&controller, "cifar", &directory.path().join("work"));
    study_when(&controller, "cifar", |study| applied(study) >= 500).await;
    let docs = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs"));
    for (name, width, height, scheme) in
        [("light", 1200, 1500, "light"), ("dark", 1200, 1500, "dark"), ("phone", 390, 844, "light")]
    {
        browser.appear(width, height, scheme);
        browser.open(&format!("http://{}/studies/cifar", controller.http));
        browser.wait("return document.querySelector('#theta svg')");
        browser.screenshot(&docs.join(format!("page-{name}.png")));
        let sideways =
            "return document.documentElement.scrollWidth > document.documentElement.clientWidth";
        assert_eq!(browser.run(sideways), false, "{name} scrolls sideways");
    }
    assert_eq!(browser.console(), [""; 0]);
}
