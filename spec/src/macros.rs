//! The macro that makes one definition serve as flag, JSON body, defaults and help.

/// Defines an option group.
///
/// ```
/// spec::spec! {
///     /// A pair of numbers.
///     pub struct Pair: "pair" {
///         flatten {}
///         fields {
///             /// The first number.
///             "first" => first_number: u32 = 1,
///             /// The second number, if any.
///             "second" => second_number: Option<u32> = None,
///         }
///         unsupported { "third" => third_number }
///     }
/// }
///
/// use spec::{Part, Value};
/// let mut options = spec::Options::parse("first=7", &Pair::keys()).unwrap();
/// assert_eq!(Pair::take(&mut options).unwrap().first_number, 7);
/// ```
///
/// The literal after the name is the flag; the one before `=>` is the key on the command line, the identifier after it the JSON
/// name. `flatten` holds groups ([`Part`](crate::Part)) shared between flags, each with a default
/// of its own if the flag needs one (`group: Type = value`). Keys under `unsupported` are refused by name,
/// unless they say "off". Implement [`Spec`](crate::Spec) with [`impl_spec!`](crate::impl_spec) or by hand for a `check`.
#[macro_export]
macro_rules! spec {
    (
        $(#[doc = $about:expr])*
        $vis:vis struct $name:ident: $flag:literal {
            flatten { $( $(#[doc = $pdoc:expr])* $part:ident: $pty:ty $(= $pdefault:expr)? ),* $(,)? }
            fields {
                $( $(#[doc = $doc:expr])+ $key:literal => $field:ident: $ty:ty = $default:expr ),* $(,)?
            }
            unsupported { $( $ukey:literal => $ufield:ident ),* $(,)? }
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, PartialEq, $crate::serde::Serialize, $crate::serde::Deserialize)]
        #[serde(crate = "spec::serde", default)]
        $vis struct $name {
            $(
                $(#[doc = $pdoc])*
                #[serde(flatten)]
                pub $part: $pty,
            )*
            $(
                $(#[doc = $doc])+
                #[serde(skip_serializing_if = "spec::Value::is_absent")]
                pub $field: $ty,
            )*
            $(
                #[doc = concat!("`", $ukey, "`: not supported yet.")]
                #[serde(skip_serializing_if = "spec::Value::is_absent")]
                pub $ufield: $crate::Unsupported,
            )*
        }

        impl Default for $name {
            fn default() -> Self {
                $name {
                    $( $part: $crate::spec!(@part $pty $(, $pdefault)?), )*
                    $( $field: $default, )*
                    $( $ufield: $crate::Unsupported::default(), )*
                }
            }
        }

        impl $name {
            /// The flag without its dashes.
            pub const FLAG: &'static str = $flag;
            /// What the group is, for the help.
            pub const ABOUT: &'static str = concat!($($about, "\n"),*);
        }

        impl $crate::Part for $name {
            // A list of nothing but its own keys is pushed at once.
            #[allow(clippy::vec_init_then_push)]
            fn keys() -> Vec<$crate::Key> {
                #[allow(unused_mut)]
                let mut keys = Vec::new();
                $( keys.extend(<$pty as $crate::Part>::keys()); )*
                $( keys.push($crate::Key {
                    name: $key,
                    syntax: <$ty as $crate::Value>::SYNTAX,
                    default: { let default: $ty = $default; <$ty as $crate::Value>::show(&default) },
                    help: concat!($($doc),+),
                    bare: false,
                    fields: &[stringify!($field)],
                }); )*
                $( keys.push($crate::Key {
                    name: $ukey, syntax: "", default: String::new(), help: "", bare: false, fields: &[],
                }); )*
                keys
            }

            fn take(options: &mut $crate::Options) -> Result<Self, $crate::ParseError> {
                $(
                    $crate::value::take(options, $ukey, $crate::Unsupported::default())
                        .map_err(|_| $crate::ParseError::Unsupported($ukey.to_owned()))?;
                )*
                Ok($name {
                    $( $part: <$pty as $crate::Part>::take(options)?, )*
                    $( $field: $crate::value::take(options, $key, $default)?, )*
                    $( $ufield: $crate::Unsupported::default(), )*
                })
            }

            fn unsupported(&self) -> Option<&'static str> {
                $( if let Some(key) = $crate::Part::unsupported(&self.$part) { return Some(key); } )*
                $( if self.$ufield.0 { return Some($ukey); } )*
                None
            }
        }
    };
    (@part $pty:ty) => { <$pty>::default() };
    (@part $pty:ty, $default:expr) => { $default };
}

/// Implements [`Spec`](crate::Spec) for a struct made by [`spec!`](crate::spec) that has nothing of its own to check.
#[macro_export]
macro_rules! impl_spec {
    ($name:ident) => {
        impl $crate::Spec for $name {
            const FLAG: &'static str = $name::FLAG;
            const ABOUT: &'static str = $name::ABOUT;
        }
    };
}
