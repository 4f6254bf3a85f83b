//! The three variables and those of shifts, and how a request keeps them.
//!
//! Once a request is resolved, its variables are written into their places in `r->variables`, where they stay for the
//! rest of its life: subrequests share that array, and an internal redirect leaves it alone. Before that, the getters
//! give emptiness that nginx does not keep. The variable of a shift follows from the hash and the time of day; nginx asks
//! for it when somebody first reads it, and keeps the answer.

use matrix_user_hash_core::engine::{Resolution, Status};
use matrix_user_hash_core::shift::Shift;
use matrix_user_hash_core::user::UserHash;
use nginx_sys::{
    ngx_conf_t, ngx_http_add_variable, ngx_http_get_variable_index, ngx_http_request_t,
    ngx_http_variable_value_t, ngx_int_t, ngx_str_t, ngx_uint_t,
};
use ngx::core::Status as Code;
use ngx::http::HttpModuleMainConf as _;
use ngx::ngx_string;

use crate::Module;
use crate::ngx::request::{Request, string};
use crate::ngx::{clock, compat, guard};

/// Where the variables are in `r->variables`, for one cycle.
#[derive(Clone, Copy, Default)]
pub struct Indexes {
    hash: ngx_uint_t,
    status: ngx_uint_t,
    lookup_time: ngx_uint_t,
    /// nginx's `$proxy_add_x_forwarded_for`, which lookups pass on.
    pub forwarded_for: ngx_uint_t,
    /// nginx's `$scheme`, likewise.
    pub scheme: ngx_uint_t,
}

/// What the variable of a shift is, and when.
#[derive(Debug)]
pub struct Words {
    /// The variable's name, without the `$`, in lower case.
    pub variable: String,
    /// What it is for those who have not moved.
    pub old: Vec<u8>,
    /// What it is for those who have, and for requests without a hash.
    pub new: Vec<u8>,
    /// Who has moved.
    pub shift: Shift,
}

/// Adds the variables to the configuration.
///
/// # Errors
///
/// nginx refused, and has logged why.
pub(crate) fn add(cf: &mut ngx_conf_t) -> Result<Indexes, ngx_int_t> {
    let mut ours = |name| -> Result<ngx_uint_t, ngx_int_t> {
        let mut name: ngx_str_t = name;
        // SAFETY: nginx copies the name, and gives a variable of the configuration or NULL.
        unsafe {
            let variable = ngx_http_add_variable(cf, &raw mut name, 0)
                .as_mut()
                .ok_or(Code::NGX_ERROR.0)?;
            variable.get_handler = Some(unresolved);
        }
        index(cf, name)
    };
    Ok(Indexes {
        hash: ours(ngx_string!("matrix_user_hash"))?,
        status: ours(ngx_string!("matrix_user_hash_status"))?,
        lookup_time: ours(ngx_string!("matrix_user_hash_lookup_time"))?,
        ..Indexes::default()
    })
}

/// Adds the variable of a shift.
///
/// # Errors
///
/// nginx or another module has a variable of that name.
pub(crate) fn add_shift(cf: &mut ngx_conf_t, words: &'static Words) -> Result<(), ngx_int_t> {
    let mut name = string(words.variable.as_bytes());
    // SAFETY: nginx copies the name, and gives a variable of the configuration or NULL.
    unsafe {
        let variable = ngx_http_add_variable(cf, &raw mut name, 0).as_mut();
        let variable = variable.ok_or(Code::NGX_ERROR.0)?;
        if variable.get_handler.is_some() || variable.set_handler.is_some() {
            return Err(Code::NGX_ERROR.0);
        }
        variable.get_handler = Some(shifted);
        variable.data = core::ptr::from_ref(words).addr();
    }
    // So that each request keeps what it was told first.
    index(cf, name).map(|_| ())
}

/// Finds nginx's own variables that lookups pass on. Only where there are lookups: an nginx without its proxy module does
/// not have them.
///
/// # Errors
///
/// nginx refused, and has logged why.
pub(crate) fn find(cf: &mut ngx_conf_t, indexes: &mut Indexes) -> Result<(), ngx_int_t> {
    indexes.forwarded_for = index(cf, ngx_string!("proxy_add_x_forwarded_for"))?;
    indexes.scheme = index(cf, ngx_string!("scheme"))?;
    Ok(())
}

fn index(cf: *mut ngx_conf_t, mut name: ngx_str_t) -> Result<ngx_uint_t, ngx_int_t> {
    // SAFETY: `cf` is the configuration that nginx is reading; it copies the name.
    let index = unsafe { ngx_http_get_variable_index(cf, &raw mut name) };
    ngx_uint_t::try_from(index).map_err(|_| Code::NGX_ERROR.0)
}

/// The getter of all three: asked only while there is nothing to give.
///
/// Neither `valid` nor `not_found` is set, so nginx asks again next time (ngx_http_get_indexed_variable).
unsafe extern "C" fn unresolved(
    _r: *mut ngx_http_request_t,
    value: *mut ngx_http_variable_value_t,
    _data: usize,
) -> ngx_int_t {
    // SAFETY: nginx passes the place of the variable.
    unsafe {
        (*value).set_valid(0);
        (*value).set_not_found(0);
        (*value).set_no_cacheable(0);
        (*value).set_len(0);
        (*value).data = EMPTY.as_ptr().cast_mut();
    }
    Code::NGX_OK.0
}

static EMPTY: [u8; 1] = [0];

/// The getter of a shift's variable: asked until there is something to give.
unsafe extern "C" fn shifted(
    r: *mut ngx_http_request_t,
    value: *mut ngx_http_variable_value_t,
    data: usize,
) -> ngx_int_t {
    // SAFETY: nginx passes the live request, and what `add_shift` gave it, which lives as long as the cycle.
    let (request, words) = unsafe { (Request::from_ptr(r), &*(data as *const Words)) };
    match guard::guard(None, || word(request, words)) {
        Some(word) => {
            // SAFETY: nginx passes the place of the variable.
            fill(unsafe { &mut *value }, word.as_ptr(), word.len());
            Code::NGX_OK.0
        }
        // SAFETY: nginx's arguments, passed on.
        None => unsafe { unresolved(r, value, data) },
    }
}

/// What the variable of a shift is for a request; `None` before it is resolved.
fn word(request: Request, words: &'static Words) -> Option<&'static [u8]> {
    let indexes = indexes(request);
    let hash = compat::variable_bytes(request.variable_slot(indexes.hash)).unwrap_or_default();
    let has_moved = match hash.try_into() {
        Ok(digits) => {
            let user = UserHash::from_hex(digits);
            words.shift.has_moved(user, clock::unix_milliseconds())
        }
        // A resolved request without a hash goes round: it may begin at once.
        Err(_) if is_resolved(request, indexes) => true,
        Err(_) => return None,
    };
    Some(if has_moved { &words.new } else { &words.old })
}

/// Where this cycle's requests keep our variables.
pub(crate) fn indexes<'c>(request: Request) -> &'c Indexes {
    // SAFETY: a live request has the main configurations of its cycle; our module's is a `MainConf`.
    let main = Module::main_conf(unsafe { &*request.as_ptr() });
    &main
        .expect("a request has our module's configuration")
        .indexes
}

/// Whether the request was resolved before: by the location that it was redirected from.
pub(crate) fn is_resolved(request: Request, indexes: &Indexes) -> bool {
    request.variable_slot(indexes.status).valid() != 0
}

/// Writes the variables. Without memory for its hash a request goes round, as one that could not be resolved.
///
/// `held` is how long the request had to wait, in milliseconds, if it had to.
pub(crate) fn write(
    request: Request,
    indexes: &Indexes,
    resolution: &Resolution,
    held: Option<u64>,
) {
    let hash = match resolution.hash {
        None => Some((EMPTY.as_ptr(), 0)),
        Some(hash) => request
            .copy(&hash.hex())
            .map(|hex| (hex.as_ptr().cast_const(), 16)),
    };
    if let Some((data, len)) = hash {
        fill(request.variable_slot(indexes.hash), data, len);
    }
    let status = match hash {
        Some(_) => resolution.status,
        None => Status::Error,
    };
    let status = status.as_str();
    fill(
        request.variable_slot(indexes.status),
        status.as_ptr(),
        status.len(),
    );
    let (data, len) = match held.map(seconds) {
        None => ("-".as_ptr(), 1),
        Some((text, len)) => match request.copy(&text) {
            Some(copy) => (copy.as_ptr().cast_const(), len),
            None => ("-".as_ptr(), 1),
        },
    };
    fill(request.variable_slot(indexes.lookup_time), data, len);
}

fn fill(value: &mut ngx_http_variable_value_t, data: *const u8, len: usize) {
    compat::fill_variable(value, data, u32::try_from(len).unwrap_or(0));
}

/// Seconds with milliseconds, as `$upstream_response_time` has them.
fn seconds(milliseconds: u64) -> ([u8; 24], usize) {
    use std::io::Write as _;

    let mut text = [0; 24];
    let mut rest = &mut text[..];
    // 24 bytes hold any number of milliseconds: 17 digits, a point and 3 digits.
    let _ = write!(rest, "{}.{:03}", milliseconds / 1000, milliseconds % 1000);
    let len = 24 - rest.len();
    (text, len)
}
