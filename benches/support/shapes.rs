//! Sets of rules in the shapes that configurations have, the same at every run.

use std::net::IpAddr;

use ipnet::IpNet;
use streamgate::addr::IpMatcher;
use streamgate::matcher::Rule;

/// How many rules there are.
pub(crate) const RULES: u32 = 100_000;

/// Every shape with its name.
pub(crate) const SHAPES: [(Shape, &str); 6] = [
    (Shape::Mixed, "mixed"),
    (Shape::Clients, "client networks alone"),
    (Shape::Same, "equal conditions"),
    (Shape::Names, "server names"),
    (Shape::V6, "IPv6 clients"),
    (Shape::Locals, "local networks"),
];

/// What rules look like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Shape {
    /// Client networks of all sizes, some IPv6; most with a port, some with a local address or a name.
    Mixed,
    /// A client network and nothing else, nearly each another one: all in one trie.
    Clients,
    /// The same port and nothing else.
    Same,
    /// Names, endings and nothing else.
    Names,
    /// Few ports, IPv6 client networks of all sizes.
    V6,
    /// Local networks of every size, some ports.
    Locals,
}

/// xorshift.
pub(crate) struct Random(u64);

impl Random {
    /// One that begins the same way each time.
    pub(crate) fn new() -> Self {
        Self(88_172_645_463_325_252)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u32) -> u32 {
        u32::try_from((self.next() >> 11) % u64::from(end)).unwrap()
    }

    /// Yes, in so many of a hundred.
    pub(crate) fn chance(&mut self, percent: u32) -> bool {
        self.below(100) < percent
    }

    /// A port.
    pub(crate) fn port(&mut self) -> u16 {
        u16::try_from(1 + self.below(20_000)).unwrap()
    }

    /// An IPv4 address.
    pub(crate) fn v4(&mut self) -> IpAddr {
        IpAddr::from(self.below(u32::MAX).to_be_bytes())
    }

    fn v6(&mut self) -> IpAddr {
        let [a, b, c] = [(); 3].map(|()| u16::try_from(self.below(65_536)).unwrap());
        IpAddr::from([0x2001, a, b, c, 0, 0, 0, 0])
    }
}

impl Shape {
    /// As many rules as there are.
    pub(crate) fn rules(self, random: &mut Random) -> Vec<Rule> {
        (0..RULES).map(|index| self.rule(index, random)).collect()
    }

    fn rule(self, index: u32, random: &mut Random) -> Rule {
        match self {
            Self::Mixed => mixed(random),
            Self::Clients => {
                // An odd factor gives every index another address.
                let address = index.wrapping_mul(2_654_435_761).to_be_bytes();
                let length = if random.chance(80) { 32 } else { 8 + random.below(24) };
                Rule { remote_addr: Some(net(address.into(), length)), ..Rule::default() }
            }
            Self::Same => Rule { server_port: Some(9100), ..Rule::default() },
            Self::Names => {
                let domain = random.below(20_000);
                let name = match random.below(10) {
                    0..6 => format!("h{}.d{domain}.example.com", random.below(50)),
                    6..9 => format!("*.d{domain}.example.com"),
                    _ => format!("*.s{}.d{domain}.example.com", random.below(1000)),
                };
                Rule { snis: vec![name.parse().unwrap()], ..Rule::default() }
            }
            Self::V6 => Rule {
                remote_addr: Some(net(random.v6(), 16 + random.below(113))),
                server_port: Some(u16::try_from(9000 + random.below(100)).unwrap()),
                ..Rule::default()
            },
            Self::Locals => Rule {
                server_addr: Some(net(local(random), 8 + random.below(25))),
                server_port: random.chance(50).then(|| random.port()),
                ..Rule::default()
            },
        }
    }
}

fn mixed(random: &mut Random) -> Rule {
    let remote_addr = random.chance(70).then(|| {
        let length = 8 + random.below(25);
        if random.chance(10) { net(random.v6(), length * 2) } else { net(random.v4(), length) }
    });
    let snis = random.chance(30).then(|| {
        let domain = random.below(2000);
        let name = if random.chance(50) { format!("h{}", random.below(50)) } else { "*".to_owned() };
        format!("{name}.d{domain}.example.com").parse().unwrap()
    });
    Rule {
        server_port: (remote_addr.is_none() || random.chance(85)).then(|| random.port()),
        server_addr: random.chance(20).then(|| IpNet::from(server(random.below(64))).into()),
        remote_addr,
        snis: snis.into_iter().collect(),
    }
}

fn net(address: IpAddr, length: u32) -> IpMatcher {
    IpNet::new(address, u8::try_from(length).unwrap()).unwrap().into()
}

/// One of the few local addresses of mixed rules.
pub(crate) fn server(index: u32) -> IpAddr {
    [10, 0, 0, u8::try_from(index).unwrap()].into()
}

fn local(random: &mut Random) -> IpAddr {
    let [_, b, c, d] = random.below(u32::MAX).to_be_bytes();
    [10, b, c, d].into()
}
