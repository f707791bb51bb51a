-- A gateway that has just started knows no engine: it asks Docker's DNS for each. Who comes meanwhile waits for that, instead of being told that there
-- is none. The functions that are registered here are called in haproxy.cfg: https://www.arpalert.org/src/haproxy-lua-api/3.0/index.html

local MOST_S = 10
local POLL_MS = 20
local started = core.now().sec

local function over()
    return core.now().sec - started >= MOST_S
end

local function serves(backend)
    return core.backends[backend]:get_srv_act() > 0
end

local function all_serve()
    for backend in os.getenv("GATEWAY_BACKENDS"):gmatch("%S+") do
        if not serves(backend) then
            return false
        end
    end
    return true
end

local function wait(txn, known)
    while not known() and not over() do
        core.msleep(POLL_MS)
    end
    if over() then
        txn:set_var("proc.started", true)
    end
end

-- Hold a request to the backend txn.backend until an engine of it serves. Without one it goes on, to its 503, once the time is over.
core.register_action("wait_for_engine", { "http-req" }, function(txn)
    local backend = txn:get_var("txn.backend")
    wait(txn, function() return serves(backend) end)
end)

-- The same for a request to all models.
core.register_action("wait_for_engines", { "http-req" }, function(txn)
    wait(txn, all_serve)
end)

-- "yes" once every model has an engine that serves, or the time is over.
core.register_fetches("started", function()
    return (over() or all_serve()) and "yes" or "no"
end)
