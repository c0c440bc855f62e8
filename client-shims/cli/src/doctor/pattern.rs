//! The patterns of the caller's own grants: `*` stays within a segment, `**` crosses segments, and `**/` also stands
//! for no segment at all.

use keyhatch::Whoami;
use serde_json::Value;

/// The patterns of the secrets that the caller's grants allow `action` on.
pub fn granted<'a>(me: &'a Whoami, action: &str) -> Vec<&'a str> {
    let texts = |grant: &'a Value, member: &str| {
        let texts = grant.get(member).and_then(Value::as_array);
        texts.into_iter().flatten().filter_map(Value::as_str)
    };
    me.grants
        .iter()
        .filter(|grant| texts(grant, "actions").any(|granted| granted == action))
        .flat_map(|grant| texts(grant, "secrets"))
        .collect()
}

/// Whether the whole of `name` matches. All places in the pattern are followed at once, so that nothing backtracks.
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let mut places = vec![false; pattern.len() + 1];
    reach(pattern, 0, true, &mut places);
    for (at, byte) in name.iter().enumerate() {
        let mut next = vec![false; pattern.len() + 1];
        let segment_next = name[at] == b'/';
        for place in (0..pattern.len()).filter(|place| places[*place]) {
            match &pattern[place..] {
                [b'*', b'*', ..] => reach(pattern, place, segment_next, &mut next),
                [b'*', ..] if *byte != b'/' => reach(pattern, place, false, &mut next),
                [b'*', ..] => {}
                [literal, ..] if literal == byte => {
                    reach(pattern, place + 1, segment_next, &mut next);
                }
                _ => {}
            }
        }
        places = next;
    }
    places[pattern.len()]
}

/// Marks `place`, and those beyond wildcards that match nothing. `begins`: the next byte of the name begins a segment.
fn reach(pattern: &[u8], place: usize, begins: bool, places: &mut [bool]) {
    places[place] = true;
    match &pattern[place..] {
        [b'*', b'*', rest @ ..] => {
            let whole = place == 0 || pattern[place - 1] == b'/';
            if whole && begins && rest.first() == Some(&b'/') {
                reach(pattern, place + 3, begins, places);
            }
            reach(pattern, place + 2, begins, places);
        }
        [b'*', ..] => reach(pattern, place + 1, begins, places),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_match_as_the_agents_do() {
        for (pattern, name, expected) in [
            ("app/key", "app/key", true),
            ("app/*", "app/key", true),
            ("app/*", "app/a/b", false),
            ("app/**", "app/a/b", true),
            ("app/**", "apple", false),
            ("a/**/b", "a/b", true),
            ("a/**/b", "a/x/y/b", true),
            ("a/**/b", "a/xb", false),
            ("**/key", "key", true),
            ("**/key", "a/b/key", true),
            ("**/key", "a/monkey", false),
            ("**", "a/b", true),
            ("a*c", "abbc", true),
            ("a*c", "ac", true),
            ("a*c", "a/c", false),
            ("*", "", true),
            ("a**", "ab/c", true),
            ("app/key", "app/key2", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
