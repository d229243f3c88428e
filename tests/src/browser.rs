//! A real browser: Debian's headless Chromium, driven through its WebDriver. What the tests ask of that is a handful of
//! requests in JSON, for which a client library would bring dozens of crates.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

const DRIVER: &str = "/usr/bin/chromedriver";
/// How long a page may take to become as expected.
const PATIENCE: Duration = Duration::from_secs(60);
/// The name of an element in WebDriver's JSON.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A window of a browser of its own; gone when dropped.
pub struct Browser {
    driver: Child,
    agent: ureq::Agent,
    session: String,
}

impl Browser {
    /// Starts one. Where there is no Chromium, says so and returns none, so that the test can be skipped.
    ///
    /// # Panics
    ///
    /// If it does not start, or is not there although `CI` is set.
    pub fn start() -> Option<Browser> {
        if !Path::new(DRIVER).exists() {
            let missing = "Chromium is not installed: `cargo xtask setup chromium` installs it";
            assert!(env::var_os("CI").is_none(), "{missing}");
            eprintln!("skipped: {missing}");
            return None;
        }
        let mut driver = Command::new(DRIVER)
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver");
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines().map(Result::unwrap);
        let port = lines.find_map(|line| {
            let (_, port) = line.split_once("started successfully on port ")?;
            Some(port.trim_end_matches('.').to_owned())
        });
        let port = port.expect("chromedriver says its port");
        // Keeps the pipe empty.
        thread::spawn(move || lines.for_each(drop));
        let config = ureq::Agent::config_builder().http_status_as_error(false).build();
        let mut browser = Browser {
            driver,
            agent: config.into(),
            session: format!("http://127.0.0.1:{port}/session"),
        };
        // Chromium refuses to run as root with its sandbox.
        let arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"];
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "acceptInsecureCerts": true,
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }}});
        let session = browser.post("", &capabilities);
        let id = session["sessionId"].as_str().expect("a session");
        browser.session = format!("{}/{id}", browser.session);
        Some(browser)
    }

    /// Opens a page.
    pub fn open(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    /// The page's address.
    pub fn url(&self) -> String {
        self.run("return location.href").as_str().unwrap().into()
    }

    /// Returns the result of a script in the page.
    pub fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({"script": script, "args": []}))
    }

    /// Waits until a script in the page returns something else than null, false, 0 or "", and returns that.
    pub fn wait(&self, script: &str) -> Value {
        let start = Instant::now();
        loop {
            let value = self.run(script);
            if !matches!(&value, Value::Null | Value::Bool(false)) && value != "" && value != 0 {
                return value;
            }
            assert!(start.elapsed() < PATIENCE, "{script} of {}:\n{}", self.url(), self.text());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The words that the page shows.
    pub fn text(&self) -> String {
        self.run("return document.body.innerText").as_str().unwrap().into()
    }

    /// Clicks on the button or link of this name, as a person would, once it is there.
    pub fn click(&self, name: &str) {
        let find = format!("//*[self::a or self::button][normalize-space()='{name}']");
        let start = Instant::now();
        // What has been drawn anew in between is another element.
        while !self.try_element(&find, "click", &json!({})) {
            assert!(start.elapsed() < PATIENCE, "no {name:?} in {}:\n{}", self.url(), self.text());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Types into the field of this id.
    pub fn type_into(&self, id: &str, text: &str) {
        let find = format!("//*[@id='{id}']");
        assert!(self.try_element(&find, "value", &json!({ "text": text })), "no field {id:?}");
    }

    fn try_element(&self, xpath: &str, what: &str, argument: &Value) -> bool {
        let find = json!({"using": "xpath", "value": xpath});
        let found = self.send("/element", Some(&find));
        let Some(id) = found[ELEMENT].as_str() else { return false };
        self.send(&format!("/element/{id}/{what}"), Some(argument))["error"].is_null()
    }

    /// Every line of the console so far that tells of an error or a warning.
    pub fn console(&self) -> Vec<String> {
        let log = self.post("/se/log", &json!({"type": "browser"}));
        let lines = log.as_array().expect("a log").iter();
        let grave = lines.filter(|line| line["level"] == "SEVERE" || line["level"] == "WARNING");
        grave.map(|line| line["message"].as_str().unwrap().into()).collect()
    }

    /// Every URL that was asked for so far.
    pub fn requests(&self) -> Vec<String> {
        let log = self.post("/se/log", &json!({"type": "performance"}));
        let events = log.as_array().expect("a log").iter().map(|entry| {
            let event = entry["message"].as_str().unwrap();
            serde_json::from_str::<Value>(event).unwrap()["message"].clone()
        });
        let sent = events.filter(|event| event["method"] == "Network.requestWillBeSent");
        sent.map(|event| event["params"]["request"]["url"].as_str().unwrap().into()).collect()
    }

    /// Takes on the size of a screen and a scheme of colours, "light" or "dark".
    pub fn appear(&self, width: u32, height: u32, scheme: &str) {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1,
            "mobile": width < 600});
        self.devtools("Emulation.setDeviceMetricsOverride", &metrics);
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.devtools("Emulation.setEmulatedMedia", &json!({ "features": features }));
    }

    /// Writes what is to be seen as PNG.
    pub fn screenshot(&self, file: &Path) {
        let png = self.send("/screenshot", None);
        let png = data_encoding::BASE64.decode(png.as_str().unwrap().as_bytes()).unwrap();
        fs::write(file, png).unwrap();
    }

    fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.post("/goog/cdp/execute", &json!({"cmd": command, "params": parameters}))
    }

    /// Asks something that cannot fail.
    fn post(&self, path: &str, body: &Value) -> Value {
        let value = self.send(path, Some(body));
        assert!(value["error"].is_null(), "{path} {body}: {value}");
        value
    }

    /// The `value` of the answer; an object with an `error` when it went wrong.
    fn send(&self, path: &str, body: Option<&Value>) -> Value {
        let url = format!("{}{path}", self.session);
        let answer = match body {
            Some(body) => self
                .agent
                .post(&url)
                .header("content-type", "application/json")
                .send(body.to_string()),
            None => self.agent.get(&url).call(),
        };
        let text = answer.unwrap().body_mut().with_config().limit(1 << 28).read_to_string();
        serde_json::from_str::<Value>(&text.unwrap()).unwrap()["value"].take()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ends Chromium; the driver's death alone would leave it.
        let _ = self.agent.delete(&self.session).call();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
