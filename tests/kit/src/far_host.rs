//! A machine of its own on this one: a network namespace behind links that can be cut without a word.
//!
//! ```text
//!  servers, in the namespace of the test                          the far host
//!   198.18.N.1 ──veth── 198.18.N.2 │ router │ 198.18.N.5 ──veth── 198.18.N.6     one such link, or several
//! ```
//!
//! A cut has the router drop what it would pass on. Neither end hears of it: no interface goes down, and no packet comes back, as when
//! a host loses power or a cable is pulled behind the next switch. Connections that were open before are there again once it is mended.
//!
//! The namespaces are those of processes that sleep and that the kernel ends with the test, so that nothing is left of one that is killed.
//! Servers have to listen on all addresses (`listen_addresses = '*'`).

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::FlockOperation;

use crate::directory::{lock_file, shared_dir};
use crate::process::{Process, Signal};

/// As many links as all tests of this machine can have at once: a network of 198.18.0.0/16, which is for tests (RFC 2544), for each.
const LINKS_MAX: u16 = 256;
const START_DEADLINE: Duration = Duration::from_secs(10);

/// Where programs can be run that reach the servers of a test by links alone.
#[derive(Debug)]
pub struct FarHost {
    links: Vec<Link>,
    namespace: Namespace,
}

/// One way between the servers and a far host.
#[derive(Debug)]
pub struct Link {
    number: u16,
    router: Namespace,
    _lock: File,
}

/// The network namespace of a process that sleeps.
#[derive(Debug)]
struct Namespace(Process);

impl FarHost {
    /// A host with so many links. Where this machine cannot have one, it says on stdout why not, and the test has nothing to do.
    ///
    /// # Errors
    /// Where it could be made, and was not.
    pub fn start(links: usize) -> Result<Option<FarHost>> {
        if let Some(why) = obstacle() {
            println!("skipped: no network namespace can be made: {why}");
            return Ok(None);
        }
        let namespace = Namespace::make()?;
        namespace.run("ip", &["link", "set", "lo", "up"])?;
        let links = (0..links).map(|_| Link::make(&namespace)).collect::<Result<_>>()?;
        Ok(Some(FarHost { links, namespace }))
    }

    pub fn link(&self, number: usize) -> &Link {
        &self.links[number]
    }

    /// Cuts all links: the host is gone.
    pub fn vanish(&self) -> Result<()> {
        self.links.iter().try_for_each(Link::cut)
    }

    /// A command that runs there. Files are those of this machine.
    pub fn command(&self, program: &Path) -> Command {
        self.namespace.command(program)
    }
}

impl Link {
    /// The address by which the servers are reached over this link.
    pub fn address(&self) -> String {
        self.addresses()[0].clone()
    }

    /// A server's connection string over this link, made of its own.
    pub fn dsn(&self, dsn: &str) -> String {
        dsn.replace("host=127.0.0.1", &format!("host={}", self.address()))
    }

    /// From here on nothing passes, and nobody is told.
    pub fn cut(&self) -> Result<()> {
        self.forward(false)
    }

    pub fn mend(&self) -> Result<()> {
        self.forward(true)
    }

    fn make(far: &Namespace) -> Result<Link> {
        let (number, lock) = free_number()?;
        let link = Link { number, router: Namespace::make()?, _lock: lock };
        let [server, router_near, router_far, host] = link.addresses();
        let near = format!("pgsl{number}n");
        // The kernel removes that of an earlier link in its own time.
        Command::new("ip").args(["link", "delete", &near]).stderr(Stdio::null()).status().ok();
        ip(&["link", "add", &near, "type", "veth", "peer", "name", "near", "netns", &link.router.pid()])?;
        ip(&["address", "add", &format!("{server}/30"), "dev", &near])?;
        ip(&["link", "set", &near, "up"])?;
        ip(&["route", "add", &format!("198.18.{number}.4/30"), "via", &router_near])?;
        let far_end = format!("pgsl{number}f");
        let router = &link.router;
        router.run("ip", &["link", "add", "far", "type", "veth", "peer", "name", &far_end, "netns", &far.pid()])?;
        for (device, address) in [("near", &router_near), ("far", &router_far)] {
            router.run("ip", &["address", "add", &format!("{address}/30"), "dev", device])?;
            router.run("ip", &["link", "set", device, "up"])?;
        }
        far.run("ip", &["address", "add", &format!("{host}/30"), "dev", &far_end])?;
        far.run("ip", &["link", "set", &far_end, "up"])?;
        far.run("ip", &["route", "add", &format!("198.18.{number}.0/30"), "via", &router_far])?;
        link.mend()?;
        Ok(link)
    }

    /// Of the servers, of the router at either end, and of the far host.
    fn addresses(&self) -> [String; 4] {
        [1, 2, 5, 6].map(|last| format!("198.18.{}.{last}", self.number))
    }

    fn forward(&self, on: bool) -> Result<()> {
        // The file is of the namespace of whoever opens it.
        let script = format!("echo {} > /proc/sys/net/ipv4/ip_forward", u8::from(on));
        self.router.run("sh", &["-c", &script])
    }
}

impl Namespace {
    fn make() -> Result<Namespace> {
        let own = network_of("self")?;
        let mut command = Command::new("unshare");
        command.args(["--net", "sleep", "infinity"]).stdin(Stdio::null()).stdout(Stdio::null());
        let process = Process::spawn("a network namespace", command, Signal::KILL)?;
        let start = Instant::now();
        while network_of(&process.pid().to_string()).is_ok_and(|network| network == own) {
            if let Some(status) = process.try_wait()? {
                bail!("unshare ended with {status}");
            }
            ensure!(start.elapsed() < START_DEADLINE, "no namespace after {START_DEADLINE:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(Namespace(process))
    }

    fn pid(&self) -> String {
        self.0.pid().to_string()
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &self.pid(), "--"]).arg(program);
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<()> {
        run(self.command(Path::new(program)).args(arguments))
    }
}

/// Why there can be no such host here, if so.
fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("this is not root".to_owned());
    }
    for program in ["ip", "unshare", "nsenter"] {
        let found = Command::new(program).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if found.is_err() {
            return Some(format!("there is no program {program}"));
        }
    }
    // Whether the kernel and the container allow it is told by trying all of it once.
    let tried = Namespace::make().and_then(|far| Link::make(&far).map(drop));
    tried.err().map(|error| format!("{error:#}"))
}

/// A number that no other link of this machine has, for as long as the lock is held.
fn free_number() -> Result<(u16, File)> {
    let locks = shared_dir()?.join("links");
    std::fs::create_dir_all(&locks)?;
    for number in 0..LINKS_MAX {
        if let Ok(lock) = lock_file(&locks.join(number.to_string()), FlockOperation::NonBlockingLockExclusive) {
            return Ok((number, lock));
        }
    }
    bail!("{LINKS_MAX} links are in use")
}

fn network_of(process: &str) -> Result<u64> {
    Ok(std::fs::metadata(format!("/proc/{process}/ns/net"))?.ino())
}

fn ip(arguments: &[&str]) -> Result<()> {
    run(Command::new("ip").args(arguments))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
