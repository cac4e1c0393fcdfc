//! A server's half of the frontend/backend protocol, as bytes ("Message Formats").

/// A value that travels; `None` is NULL.
pub type Value = Option<Vec<u8>>;

pub const BOOL: u32 = 16;
pub const INT8: u32 = 20;
pub const OID: u32 = 26;
pub const INT4_ARRAY: u32 = 1007;
pub const TEXT_ARRAY: u32 = 1009;
pub const OID_ARRAY: u32 = 1028;
pub const TIMESTAMPTZ: u32 = 1184;
pub const PG_LSN: u32 = 3220;

pub fn message(tag: u8, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([tag, 0, 0, 0, 0]);
    write(out);
    let length = (out.len() - start - 1) as u32;
    out[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
}

pub fn empty(tag: u8, out: &mut Vec<u8>) {
    message(tag, out, |_| {});
}

pub fn command_complete(tag: &str, out: &mut Vec<u8>) {
    message(b'C', out, |body| string(tag, body));
}

pub fn ready_for_query(status: u8, out: &mut Vec<u8>) {
    message(b'Z', out, |body| body.push(status));
}

/// `text` is the message of the error.
pub fn error(code: &str, text: &str, out: &mut Vec<u8>) {
    message(b'E', out, |body| {
        for (field, value) in [(b'S', "ERROR"), (b'V', "ERROR"), (b'C', code), (b'M', text)] {
            body.push(field);
            string(value, body);
        }
        body.push(0);
    });
}

/// A warning beside the answers.
pub fn warning(out: &mut Vec<u8>) {
    message(b'N', out, |body| {
        for (field, value) in
            [(b'S', "WARNING"), (b'V', "WARNING"), (b'C', "01000"), (b'M', "as the simulation has it")]
        {
            body.push(field);
            string(value, body);
        }
        body.push(0);
    });
}

pub fn parameter_description(types: &[u32], out: &mut Vec<u8>) {
    message(b't', out, |body| {
        body.extend((types.len() as u16).to_be_bytes());
        types.iter().for_each(|oid| body.extend(oid.to_be_bytes()));
    });
}

pub fn row_description(types: &[u32], out: &mut Vec<u8>) {
    message(b'T', out, |body| {
        body.extend((types.len() as u16).to_be_bytes());
        for oid in types {
            string("?column?", body);
            // No table, no column of one.
            body.extend([0; 6]);
            body.extend(oid.to_be_bytes());
            body.extend((-1_i16).to_be_bytes());
            body.extend((-1_i32).to_be_bytes());
            body.extend(1_i16.to_be_bytes());
        }
    });
}

pub fn data_row(values: &[Value], out: &mut Vec<u8>) {
    message(b'D', out, |body| {
        body.extend((values.len() as u16).to_be_bytes());
        for value in values {
            match value {
                None => body.extend((-1_i32).to_be_bytes()),
                Some(value) => {
                    body.extend((value.len() as u32).to_be_bytes());
                    body.extend(value);
                }
            }
        }
    });
}

pub fn copy_in_response(is_binary: bool, columns: usize, out: &mut Vec<u8>) {
    message(b'G', out, |body| {
        body.push(is_binary.into());
        body.extend((columns as u16).to_be_bytes());
        (0..columns).for_each(|_| body.extend(u16::from(is_binary).to_be_bytes()));
    });
}

fn string(text: &str, out: &mut Vec<u8>) {
    out.extend(text.as_bytes());
    out.push(0);
}

/// Reads the fields of a client's message.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn string(&mut self) -> &'a str {
        let end = self.0.iter().position(|byte| *byte == 0).expect("a string ends");
        let (text, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        str::from_utf8(text).expect("a string in UTF-8")
    }

    pub fn count(&mut self) -> usize {
        let (count, rest) = self.0.split_first_chunk().expect("a count");
        self.0 = rest;
        u16::from_be_bytes(*count).into()
    }

    pub fn int4(&mut self) -> i32 {
        let (number, rest) = self.0.split_first_chunk().expect("a number");
        self.0 = rest;
        i32::from_be_bytes(*number)
    }

    pub fn value(&mut self) -> Value {
        let length = usize::try_from(self.int4()).ok()?;
        let (value, rest) = self.0.split_at(length);
        self.0 = rest;
        Some(value.to_vec())
    }
}

/// An array of texts (`array_send`).
pub fn text_array(texts: &[String]) -> Vec<u8> {
    let dimensions: &[usize] = if texts.is_empty() { &[] } else { &[texts.len(), 1] };
    let mut out = Vec::new();
    for number in [usize::from(!texts.is_empty()), 0, 25].iter().chain(dimensions) {
        out.extend((*number as u32).to_be_bytes());
    }
    for text in texts {
        out.extend((text.len() as u32).to_be_bytes());
        out.extend(text.as_bytes());
    }
    out
}

/// The elements of an array of one dimension (`array_recv`).
pub fn array(value: &[u8]) -> Vec<Value> {
    let mut fields = Fields(value);
    let dimensions = fields.int4();
    let (_has_null, _element_oid) = (fields.int4(), fields.int4());
    if dimensions == 0 {
        return Vec::new();
    }
    let (length, _first) = (fields.int4(), fields.int4());
    (0..length).map(|_| fields.value()).collect()
}
