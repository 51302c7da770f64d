//! `adit proxy`: prints the settings that let programs use the forward proxy.

use std::net::SocketAddr;

use super::{
    Globals,
    report::{CliError, print, table},
};
use crate::{
    admin::socket,
    config::{
        Config, ContextName,
        listen::of_this_machine,
        shell::{self, quoted},
    },
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  adit proxy\n  adit --context prod proxy\n  eval \"$(adit proxy --env)\"")]
pub struct Args {
    /// Print only the variables, for a shell
    #[arg(long)]
    env: bool,
}

pub async fn run(globals: &Globals, args: Args) -> Result<(), CliError> {
    let config = globals.load()?;
    let is_default = other_context(globals, &config).await?.is_none();
    let address = address(&config)?;
    let user = globals.context.clone().map(String::from).unwrap_or_default();
    let [proxy, browser, up, url] = ["proxy", "browser", "up", "url"].map(|name| globals.command(name));
    let proxy = Proxy { address, user, is_default, proxy, browser, up, url };
    print(&if args.env { proxy.variables() } else { proxy.lines() })
}

/// Returns the context of the command line, if clients that name none reach another one: browsers and desktops, because a PAC file
/// has no user name.
///
/// # Errors
/// The kubeconfig has no such context, or the configuration is invalid.
pub async fn other_context(globals: &Globals, config: &Config) -> Result<Option<ContextName>, CliError> {
    let Some((wanted, current)) = globals.check_context(config)? else { return Ok(None) };
    let running = match socket::of_port(config.http.listen.first().map_or(0, SocketAddr::port)).await {
        Some(socket) => socket::status(&socket).await.ok().map(|status| status.overview.context),
        None => None,
    };
    let default = match running {
        Some(context) => context,
        None => {
            let of_file = Globals { context: None, ..globals.clone() }.load()?.default_context;
            of_file.or(current).map(String::from)
        }
    };
    Ok((default.as_deref() != Some(wanted.as_str())).then_some(wanted))
}

/// Returns the address at which local programs reach the forward proxy.
///
/// # Errors
/// The proxy is off, or there is no listener.
pub fn address(config: &Config) -> Result<SocketAddr, CliError> {
    if config.proxy.is_none() {
        return Err(CliError::new("the forward proxy is off").hint(Some("remove 'proxy: off' from the configuration")));
    }
    let own = config.proxy.as_ref().and_then(|proxy| proxy.listen.first());
    let listen = own.or(config.http.listen.first()).copied();
    listen.map(of_this_machine).ok_or_else(|| CliError::new("there is no listener for HTTP"))
}

/// Returns the URL of the PAC file.
pub fn pac(address: SocketAddr) -> String {
    format!("http://{address}/proxy.pac")
}

/// Returns the variables that make programs use a forward proxy.
pub fn variables(socks: &str, http: &str) -> Vec<(String, String)> {
    let upper = [
        ("ALL_PROXY", socks),
        ("HTTP_PROXY", http),
        ("HTTPS_PROXY", http),
        ("NO_PROXY", "localhost,127.0.0.1,::1,.localhost"),
    ];
    let both = upper.iter().flat_map(|(name, value)| {
        [(*name).to_owned(), name.to_ascii_lowercase()].map(|name| (name, (*value).to_owned()))
    });
    // Node 24 and newer uses the other variables if this one is set.
    both.chain([("NODE_USE_ENV_PROXY".to_owned(), "1".to_owned())]).collect()
}

struct Proxy {
    address: SocketAddr,
    /// The context, as the user name in proxy URLs. Empty: the default one.
    user: String,
    /// Whether clients that name no context reach this one.
    is_default: bool,
    /// Commands of adit with the options of this command line.
    proxy: String,
    browser: String,
    up: String,
    url: String,
}

impl Proxy {
    fn url(&self, scheme: &str) -> String {
        let user = percent_encoding::utf8_percent_encode(&self.user, percent_encoding::NON_ALPHANUMERIC).to_string();
        let at = if user.is_empty() { "" } else { "@" };
        format!("{scheme}://{user}{at}{}", self.address)
    }

    fn variables(&self) -> String {
        let lines = variables(&self.url("socks5h"), &self.url("http")).into_iter();
        lines.map(|(name, value)| shell::export(&name, &value)).collect()
    }

    fn lines(&self) -> String {
        let (socks, http, pac) = (self.url("socks5h"), self.url("http"), pac(self.address));
        let (host, port) = (self.address.ip(), self.address.port());
        let user = if self.user.is_empty() { String::new() } else { format!(" -Duser.name={}", quoted(&self.user)) };
        let rows = [
            ["curl".to_owned(), format!("curl --proxy {socks} http://web.shop.svc.cluster.local/")],
            ["a shell".to_owned(), format!("eval \"$({} --env)\"", self.proxy)],
            ["Python".to_owned(), format!("ALL_PROXY={socks}, with requests[socks] or httpx[socks]")],
            ["Node".to_owned(), format!("NODE_USE_ENV_PROXY=1 HTTP_PROXY={http} HTTPS_PROXY={http}")],
            ["gRPC".to_owned(), format!("HTTPS_PROXY={http}")],
            ["git".to_owned(), format!("git -c http.proxy={socks}")],
            [
                "JVM".to_owned(),
                format!("-DsocksProxyHost={host} -DsocksProxyPort={port}{user}: every connection of the JVM"),
            ],
        ];
        let browsers = match self.is_default {
            true => vec![
                ["Chromium".to_owned(), format!("{} web.shop", self.browser)],
                ["Firefox".to_owned(), format!("Settings, Network Settings, Automatic proxy configuration URL: {pac}")],
                ["macOS".to_owned(), format!("networksetup -setautoproxyurl Wi-Fi {pac}")],
                ["GNOME".to_owned(), format!("gsettings set org.gnome.system.proxy autoconfig-url {pac}")],
            ],
            false => vec![[
                "browsers".to_owned(),
                format!(
                    "their proxy settings cannot name a context: restart adit with '{}', or open the URL of '{} web.shop'",
                    self.up, self.url
                ),
            ]],
        };
        table(&rows.into_iter().chain(browsers).map(|row| row.to_vec()).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_context_is_the_user_of_the_urls() {
        let address = "127.0.0.1:8989".parse().unwrap();
        let of = |user: &str| Proxy {
            address,
            user: user.to_owned(),
            is_default: true,
            proxy: "adit --context prod proxy".to_owned(),
            browser: "adit --context prod browser".to_owned(),
            up: "adit --context prod up".to_owned(),
            url: "adit --context prod url".to_owned(),
        };
        assert_eq!(of("").url("socks5h"), "socks5h://127.0.0.1:8989");
        assert_eq!(of("prod").url("socks5h"), "socks5h://prod@127.0.0.1:8989");
        assert_eq!(of("arn:aws/x").url("socks5h"), "socks5h://arn%3Aaws%2Fx@127.0.0.1:8989");
        let shell = of("").variables();
        assert!(shell.contains("export all_proxy='socks5h://127.0.0.1:8989'\n"), "{shell}");
        let lines = of("prod").lines();
        assert!(lines.contains("$(adit --context prod proxy --env)"), "{lines}");
        assert!(lines.contains("adit --context prod browser web.shop") && lines.contains("proxy.pac"), "{lines}");
        assert!(lines.contains("-DsocksProxyPort=8989 -Duser.name=prod:"), "{lines}");
        // A PAC file has no user name, so nothing that uses it may claim to reach another context.
        let lines = Proxy { is_default: false, ..of("prod") }.lines();
        assert!(!lines.contains("proxy.pac") && !lines.contains("browser web.shop"), "{lines}");
        assert!(
            lines.contains("'adit --context prod up', or open the URL of 'adit --context prod url web.shop'"),
            "{lines}"
        );
    }
}
