//! Values that are one of a few words.

/// Defines an enum whose variants are words on the command line and variant names in JSON.
///
/// Words are compared without regard to case; JSON names exactly.
#[macro_export]
macro_rules! choice {
    (
        $(#[$meta:meta])*
        $vis:vis enum $name:ident {
            $( $(#[$vmeta:meta])* $variant:ident = $word:literal ),+ $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, $crate::serde::Serialize, $crate::serde::Deserialize)]
        #[serde(crate = "spec::serde")]
        $vis enum $name {
            $( $(#[$vmeta])* $variant ),+
        }

        impl $crate::Value for $name {
            const SYNTAX: &'static str = $crate::choice!(@join $($word)+);

            fn convert(text: &str) -> Result<Self, String> {
                let text = $crate::grammar::dequote(text);
                $( if text.eq_ignore_ascii_case($word) { return Ok($name::$variant); } )+
                Err(format!("expected one of {}", <Self as $crate::Value>::SYNTAX))
            }

            fn show(&self) -> String {
                match self { $( $name::$variant => $word.to_owned() ),+ }
            }
        }
    };
    (@join $first:literal $($rest:literal)*) => { concat!($first $(, "|", $rest)*) };
}
