krbrefresh exec -- curl --fail --silent --show-error --negotiate --user : "$URL"
