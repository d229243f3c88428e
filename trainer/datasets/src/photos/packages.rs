//! Which photos there are, as the Debian packages and their copyright files name them.

/// A package and where its photos are.
#[derive(Debug)]
pub(super) struct Package {
    pub(super) name: &'static str,
    pub(super) folder: &'static str,
    pub(super) photos: &'static [Photo],
}

/// A photo, its digest, and whose it is.
#[derive(Debug)]
pub(super) struct Photo {
    pub(super) file: &'static str,
    pub(super) sha256: &'static str,
    pub(super) copyright: &'static str,
    pub(super) licence: &'static str,
}

pub(super) const PACKAGES: [Package; 2] = [
    Package {
        name: "lomiri-wallpapers-16.04",
        folder: "usr/share/backgrounds",
        photos: &[
            Photo {
                file: "aitzgorri_by_Aitzol_Berasategi.jpg",
                sha256: "66268e7b48f8854d36a28765fac6e23ec1aee251daa6da1f64715f201020ad36",
                copyright: "Aitzol Berasategi, 2018",
                licence: "CC-BY-4.0",
            },
            Photo {
                file: "analogpattern_by_Peter_Nerlich.jpg",
                sha256: "15372488a192b2be2eafc67bd3ed31cbfca19abe3929e925607fcbc9cb4d4202",
                copyright: "Peter Nerlich, 2018",
                licence: "CC-BY-SA-4.0",
            },
            Photo {
                file: "Bridge_by_Sander_Klootwijk.jpg",
                sha256: "bd86b081f9975e2b83527f71e49b9271a8ab40885428395969d9f7d834d7f050",
                copyright: "2018, Sander Klootwijk",
                licence: "CC-BY-SA-4.0",
            },
            Photo {
                file: "Dragonfly_by_Bolly.jpg",
                sha256: "af5af17841009732def24b09bb1e669a1b09d2b4bdeee7812c371101c30d2bb3",
                copyright: "\"Bolly\", 2018",
                licence: "CC-BY-SA-4.0",
            },
            Photo {
                file: "free_by_Peter_Nerlich.jpg",
                sha256: "85a5453c2fed514c75973016f3d862aca62eb7ca087618822469274ac1092373",
                copyright: "Peter Nerlich, 2018",
                licence: "CC-BY-SA-4.0",
            },
            Photo {
                file: "friends_by_Aitzol_Berasategi.jpg",
                sha256: "cc40e313c74e421edffe3403def413c16878ce14661cce7ec5915baeab35538d",
                copyright: "Aitzol Berasategi, 2018",
                licence: "CC-BY-4.0",
            },
            Photo {
                file: "greentock_by_Peter_Nerlich.jpg",
                sha256: "e7b20e2db9dcd6e2b278ca55873c2110b35d89cd38b04d0b18728726888e6889",
                copyright: "Peter Nerlich, 2018",
                licence: "CC-BY-SA-4.0",
            },
            Photo {
                file: "life_by_Aitzol_Berasategi.jpg",
                sha256: "4c119350ead80201fe256850c3d316309ddfb4bdf10b235ce982dcde0c667c05",
                copyright: "Aitzol Berasategi, 2018",
                licence: "CC-BY-4.0",
            },
            Photo {
                file: "picosdeeuropa_by_Aitzol_Berasategi.jpg",
                sha256: "414d0072b2f6f2c555deafeaef6e45c4fed6fa9ad26eba6560ca8803959cf97a",
                copyright: "Aitzol Berasategi, 2018",
                licence: "CC-BY-4.0",
            },
            Photo {
                file: "Picture_0B_by_freespace.jpg",
                sha256: "c8c0ab18e48d9e0419fe42881112137f3afafc27dfddc29ec3a6d54c56d225ad",
                copyright: "Trevor \"Freespace\", 2018",
                licence: "CC-BY-4.0",
            },
            Photo {
                file: "Picture_1A_by_freespace.jpg",
                sha256: "89e86af38d04daaef975665dc2127e9fa76f0fd68f4eea105a2d0ae3390b010b",
                copyright: "Trevor \"Freespace\", 2018",
                licence: "CC-BY-4.0",
            },
            Photo {
                file: "seeding_by_Clements_Engelhardt.jpg",
                sha256: "a5634d1ab5e41a3568e92d4a894a500c92b891f9ff734e50bd224d6e185a605f",
                copyright: "Clemens Engelhardt, 2018",
                licence: "CC0-1.0",
            },
            Photo {
                file: "sunset_by_Aitzol_Berasategi.jpg",
                sha256: "474dab6a4b9f94dc76c29dfe30e9f5db4af0fd2e33fe5d695f8152b371efca18",
                copyright: "Aitzol Berasategi, 2018",
                licence: "CC-BY-4.0",
            },
            Photo {
                file: "umang_by_Abhishek_Mudgal.jpg",
                sha256: "bfb425545e77e9f0eb1b037b607fc9ed4a446f3b0f04aa2879be3556073c57ef",
                copyright: "Abhishek Mudgal, 2018",
                licence: "CC-BY-4.0",
            },
            Photo {
                file: "Wine_by_Jakkub_Mede.jpg",
                sha256: "d2e96e6d4da40dd804b3d0ce295e94de04a2d7d9b6785d42cd9d92ba58bced74",
                copyright: "Jakub Mede, 2018",
                licence: "CC-BY-4.0",
            },
        ],
    },
    Package {
        name: "mate-backgrounds",
        folder: "usr/share/backgrounds/mate/nature",
        photos: &[
            Photo {
                file: "Aqua.jpg",
                sha256: "5c30118205982da441bf7e6a1ada636a8a0be879408140b3148280c665ed6bce",
                copyright: "2008, Charles Barbin",
                licence: "GPL-2+",
            },
            Photo {
                file: "Blinds.jpg",
                sha256: "f7aac0dcc2e06d0491643e84df3da1d9db7c4610f58806a880d56e074799f600",
                copyright: "2008, Lennart Poettering; 2008, Andrea Cimitan",
                licence: "GPL-2+",
            },
            Photo {
                file: "Dune.jpg",
                sha256: "8a67c2cb0be8c46b70c237311a4fa4d2b4ac7d39568135384787801fa5cc9a91",
                copyright: "2007, Marco Cogoni; 2008, Hylke Bons",
                licence: "GPL-2+",
            },
            Photo {
                file: "FreshFlower.jpg",
                sha256: "972b0a0c4e5e3fa93f4f244fc84bc64b121a5eac3aaa5856f1308c1f38a02f8e",
                copyright: "2005, Jens Ansorg",
                licence: "GPL-2+",
            },
            Photo {
                file: "Garden.jpg",
                sha256: "d3095ee09d425ef23d27155412136cf14fc3c9af76ca58b452f55e23da324e78",
                copyright: "2008, Charles Barbin",
                licence: "GPL-2+",
            },
            Photo {
                file: "GreenMeadow.jpg",
                sha256: "8fa0de0aa4089f7319c9fb7a6d006d4cab6023e8c8853731557cff53567b4832",
                copyright: "2005, Timothy Schellhase; 2008, Lapo Calamandrei",
                licence: "GPL-2+",
            },
            Photo {
                file: "LadyBird.jpg",
                sha256: "e35a9a4126ef969c90b29c038058c5a575a20eadd84106a37bf1fa9931e7b61d",
                copyright: "2008, Charles Barbin",
                licence: "GPL-2+",
            },
            Photo {
                file: "RainDrops.jpg",
                sha256: "3e4ea9671c28c90a86cf67b3db9daf18c4741587c596333a7529ca589aaa0c16",
                copyright: "2008, \"blackcombwhistler07\"",
                licence: "GPL-2+",
            },
            Photo {
                file: "Storm.jpg",
                sha256: "77ca53077831d3237f73393a91fc879158abc046d852941c26e90de336356957",
                copyright: "2008, Sergey Nazarov",
                licence: "GPL-2+",
            },
            Photo {
                file: "TwoWings.jpg",
                sha256: "665e5abf8a5399070a91a9a8e455fe071e5b61697ff78fdeda4e9843ef545aeb",
                copyright: "2008, Charles Barbin; 2008, Hylke Bons",
                licence: "GPL-2+",
            },
            Photo {
                file: "Wood.jpg",
                sha256: "19c78500ac00a622e19907ab9cc7d06d46fe08c4a6142759a84195696150ec07",
                copyright: "2008, Jean-François Fortin Tam",
                licence: "GPL-2+",
            },
            Photo {
                file: "YellowFlower.jpg",
                sha256: "254da96256acb7add685679775a04d1e4a5bc8cd13e5a5a3d61351ce198a5306",
                copyright: "2008, Charles Barbin",
                licence: "GPL-2+",
            },
        ],
    },
];
