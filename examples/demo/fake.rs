//! Shop data that looks real: a seed in; customers, products and orders out, the same ones for the same seed.

use std::time::{Duration, SystemTime};

/// The day that stands for today, 2026-07-01 in UTC: orders lie in the twelve months before it, so that the answers of
/// the analytic queries do not depend on the day of the demo.
pub fn today() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_782_864_000)
}

const YEAR_MICROS: u64 = 365 * 24 * 3600 * 1_000_000;
pub const PRODUCTS: usize = MATERIALS.len() * THINGS.len();

const FIRST_NAMES: [&str; 16] = [
    "Amara",
    "Björn",
    "Chiara",
    "Daniel",
    "Elif",
    "François",
    "Grace",
    "Hiro",
    "Ines",
    "Jakub",
    "Leïla",
    "Mateo",
    "Nadia",
    "Oskar",
    "Priya",
    "Zoë",
];
const LAST_NAMES: [&str; 16] = [
    "Andersen",
    "Becker",
    "Costa",
    "Dubois",
    "Fischer",
    "García",
    "Haddad",
    "Jansen",
    "Kowalski",
    "Lindqvist",
    "Müller",
    "Novák",
    "O'Brien",
    "Rossi",
    "Singh",
    "Tanaka",
];

struct City {
    name: &'static str,
    postcodes: [&'static str; 3],
    streets: [&'static str; 3],
}

/// The larger markets first: the earlier ones are drawn more often.
const CITIES: [City; 8] = [
    City {
        name: "Berlin",
        postcodes: ["10115", "10437", "12043"],
        streets: ["Invalidenstraße", "Kastanienallee", "Weserstraße"],
    },
    City {
        name: "Paris",
        postcodes: ["75003", "75011", "75018"],
        streets: ["Rue Oberkampf", "Rue Lepic", "Rue Charlot"],
    },
    City {
        name: "Madrid", postcodes: ["28004", "28012", "28015"], streets: ["Calle Mayor", "Gran Vía", "Calle Luna"]
    },
    City {
        name: "Milano",
        postcodes: ["20121", "20123", "20144"],
        streets: ["Via Brera", "Via Torino", "Via Tortona"],
    },
    City { name: "Kraków", postcodes: ["30-059", "31-042", "31-153"], streets: ["Długa", "Grodzka", "Karmelicka"] },
    City { name: "Zürich", postcodes: ["8001", "8004", "8005"], streets: ["Langstrasse", "Limmatquai", "Rennweg"] },
    City {
        name: "København", postcodes: ["1050", "1620", "2200"], streets: ["Nørrebrogade", "Istedgade", "Bredgade"]
    },
    City {
        name: "Lisboa",
        postcodes: ["1100", "1200", "1250"],
        streets: ["Rua Augusta", "Rua do Século", "Rua Garrett"],
    },
];

const MATERIALS: [&str; 6] = ["Oak", "Walnut", "Linen", "Steel", "Rattan", "Marble"];
const THINGS: [&str; 8] = ["armchair", "bookshelf", "desk", "floor lamp", "mirror", "side table", "stool", "wardrobe"];
const COLOURS: [&str; 5] = ["natural", "charcoal", "sand", "forest green", "midnight blue"];
const NOTES: [&str; 6] = [
    "leave with the neighbour",
    "ring twice; the bell is faint",
    "gift wrapping, please",
    "call before delivery",
    "third floor, no lift",
    "invoice to the office",
];

#[derive(Debug)]
pub struct Customer {
    pub full_name: String,
    pub email: String,
    pub phone: Option<String>,
    pub city: String,
    pub registered_at: SystemTime,
}

#[derive(Debug)]
pub struct Product {
    pub name: String,
    pub price: String,
}

/// An order without its customer and product, which are rows of the shop.
#[derive(Debug)]
pub struct Order {
    pub colour: &'static str,
    pub address: String,
    pub taken_at: SystemTime,
    pub notes: Option<String>,
}

/// A seeded source of shop data: SplitMix64 (Steele, Lea and Flood, 2014), which is enough for that and ten lines.
#[derive(Debug)]
pub struct Fake {
    state: u64,
}

impl Fake {
    pub fn new(seed: u64) -> Fake {
        Fake { state: seed }
    }

    /// `serial` tells people of one name apart, in a shop where no two have the same email.
    pub fn customer(&mut self, serial: &str) -> Customer {
        let (first, last) = (self.pick(&FIRST_NAMES), self.pick(&LAST_NAMES));
        let phone = self.one_in(3).then(|| format!("+49 30 {:07}", self.below(10_000_000)));
        Customer {
            full_name: format!("{first} {last}"),
            email: format!("{}.{}.{serial}@example.com", first.to_lowercase(), last.to_lowercase().replace('\'', "")),
            phone,
            city: self.city().to_owned(),
            registered_at: self.moment_of_the_year(),
        }
    }

    pub fn product(&mut self, number: usize) -> Product {
        let name = format!("{} {}", MATERIALS[number % MATERIALS.len()], THINGS[number / MATERIALS.len()]);
        Product { name, price: format!("{}.{:02}", 39 + self.below(900), self.below(100)) }
    }

    pub fn order(&mut self) -> Order {
        Order {
            colour: self.pick(&COLOURS),
            address: self.address(),
            taken_at: self.moment_of_the_year(),
            notes: match self.below(50) {
                0 => Some(self.delivery_label()),
                1..25 => Some(self.note()),
                _ => None,
            },
        }
    }

    /// Postcode and city come first, so many addresses begin alike.
    pub fn address(&mut self) -> String {
        let city = &CITIES[self.early(CITIES.len())];
        let (postcode, street) = (self.pick(&city.postcodes), self.pick(&city.streets));
        format!("{postcode} {}, {street} {}", city.name, 1 + self.below(180))
    }

    pub fn city(&mut self) -> &'static str {
        CITIES[self.early(CITIES.len())].name
    }

    pub fn note(&mut self) -> String {
        self.pick(&NOTES).to_owned()
    }

    /// A scanned label: some kilobytes that do not compress, so PostgreSQL keeps them out of line, in TOAST.
    fn delivery_label(&mut self) -> String {
        let words = 400 + self.below(400);
        let scan: String = (0..words).map(|_| format!("{:016x}", self.next())).collect();
        format!("scanned label: {scan}")
    }

    fn moment_of_the_year(&mut self) -> SystemTime {
        today() - Duration::from_micros(1 + self.next() % YEAR_MICROS)
    }

    /// Below `count`, small ones more often.
    pub fn early(&mut self, count: usize) -> usize {
        let limit = 1 + self.below(count);
        self.below(limit)
    }

    pub fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub fn below(&mut self, count: usize) -> usize {
        // A remainder below `count` fits; its bias is nothing beside 2⁶⁴.
        (self.next() % count as u64) as usize
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
