//! Which way a table's rows go.

/// `[tables.NAME]`'s `direction`: whether its rows go to the cloud, and whether those of others come home.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Direction {
    /// Both ways.
    #[default]
    Both,
    /// What is written here goes to the cloud; what others write stays there.
    Push,
    /// The cloud's rows come home; what is written here stays here.
    Pull,
    /// The table is this file's alone.
    None,
}

impl Direction {
    /// The word in the settings.
    pub fn word(self) -> &'static str {
        match self {
            Self::Both => "both",
            Self::Push => "push",
            Self::Pull => "pull",
            Self::None => "none",
        }
    }

    /// Whether rows that are written here are sent.
    pub fn sends(self) -> bool {
        matches!(self, Self::Both | Self::Push)
    }

    /// Whether rows that others wrote come home.
    pub fn receives(self) -> bool {
        matches!(self, Self::Both | Self::Pull)
    }
}
